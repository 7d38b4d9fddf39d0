"""Restarting the daemon on purpose: a guest sees a pause, and the next process has the code of now.

What is in flight is finished first, so nothing has to be executed again; then the process ends with
a status that tells whoever keeps its file descriptors to start it again (:mod:`.keeper`, or systemd
by ``Restart=``). Before anything is held, the code that the next process will have is asked whether
it can read what this one leaves.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

from nvme_mdev.controller.shared_state import FORMAT as SHARED_FORMAT
from nvme_mdev.datapath.state import LAYOUT_VERSION, layout
from nvme_mdev.errors import UserError
from nvme_mdev.service.client_tables import FORMAT as TABLES_FORMAT
from nvme_mdev.service.record import FORMAT as RECORD_FORMAT
from nvme_mdev.vfio_user.journal import FORMAT as JOURNAL_FORMAT

if TYPE_CHECKING:
    from nvme_mdev.service.registry import Registry
    from nvme_mdev.service.served import ServedController

_CHECK_TIMEOUT_S = 30.0
_DRAIN_POLL_S = 0.001


def formats() -> dict[str, int]:
    """What a process leaves: the form of each part, which must be the next one's, too."""
    return {
        "state": LAYOUT_VERSION,
        "state's size": layout()["controller_state"][1],
        "record": RECORD_FORMAT,
        "shared state": SHARED_FORMAT,
        "client's tables": TABLES_FORMAT,
        "journal": JOURNAL_FORMAT,
    }


async def prepare(registry: Registry, timeout_s: float) -> None:
    """Get ready to be restarted: nothing is in flight when this returns, and nothing more comes.

    UserError: it cannot be; everything goes on as before.
    """
    if registry.kept is None:
        raise UserError(
            "nobody would start the daemon again: it has no keeper (--no-keeper), end it instead"
        )
    await _check_next()
    held = list(registry)
    try:
        for served in held:
            served.controller.queues.paused = True
        for served in held:
            await _drained(served, timeout_s)
    except BaseException:
        for served in held:
            served.controller.queues.paused = served.controller.paused
        raise


async def _check_next() -> None:
    """Ask the code that the next process will have whether it can go on with what we leave."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "nvme_mdev.service.restart"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        raise UserError("the next nvme-mdev does not start: it says nothing") from None
    try:
        found = json.loads(out)
    except ValueError:
        last = err.decode(errors="replace").strip().splitlines()[-1:] or ["it says nothing"]
        raise UserError(f"the next nvme-mdev does not start: {last[0]}") from None
    different = [name for name, form in formats().items() if found.get(name) != form]
    if different:
        raise UserError(
            f"the nvme-mdev that is installed now has another form of the {', '.join(different)}:"
            " end the guest and the daemon, and start both again"
        )


async def _drained(served: ServedController, timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while served.controller.queues.inflight():
        if loop.time() > deadline:
            raise UserError(
                f"{served.name}: I/O is still in flight after {timeout_s:g} s: wait longer"
                " (--timeout), or kill the daemon, which carries on as well"
            )
        await asyncio.sleep(_DRAIN_POLL_S)


def main() -> None:
    """Say what forms this code has."""
    json.dump(formats(), sys.stdout)


if __name__ == "__main__":
    main()
