"""What a check says about what it sees: it holds, or `CheckFailed` with what was seen instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nvme_mdev.conformance.check import CheckFailed

if TYPE_CHECKING:
    from nvme_mdev.host.completion import Completion
    from nvme_mdev.host.io import CommandQueue, Reply
    from nvme_mdev.spec.nvme_commands import SQE
    from nvme_mdev.spec.nvme_status import StatusCode


def require(holds: object, why: str) -> None:
    """Fail with ``why`` unless it holds."""
    if not holds:
        raise CheckFailed(why)


def equal(found: Any, wanted: Any, what: str) -> None:
    """Fail unless the two are equal."""
    if found != wanted:
        raise CheckFailed(f"{what}: {_show(found)} instead of {_show(wanted)}")


def completed(completion: Completion, *codes: StatusCode) -> None:
    """Fail unless the command completed with one of these statuses; none: successfully."""
    status = completion.status
    if (status.code in codes) if codes else status.success:
        return
    wanted = " or ".join(code.name for code in codes) or "SUCCESS"
    raise CheckFailed(f"completed with {status} instead of {wanted}")


def succeeds(queue: CommandQueue, sqe: SQE, *, send: bytes = b"", receive: int = 0) -> Reply:
    """The command succeeds."""
    reply = queue.execute(sqe, send=send, receive=receive, check=False)
    completed(reply.completion)
    return reply


def refused(
    queue: CommandQueue, sqe: SQE, *codes: StatusCode, send: bytes = b"", receive: int = 0
) -> Completion:
    """The command completes with one of these statuses."""
    completion = queue.execute(sqe, send=send, receive=receive, check=False).completion
    completed(completion, *codes)
    return completion


def _show(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return repr(value) if not isinstance(value, bytes) else f"{value[:16].hex()}..."
    return f"{value:#x}" if value > 9 else str(value)
