"""``nvme-mdev conformance``: does a controller do what the specifications say?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nvme_mdev.cli.parameters import json_option
from nvme_mdev.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.conformance.check import Check
    from nvme_mdev.conformance.runner import Result

_EXIT_FAILED = 1
_NAME_WIDTH = 15


@click.command()
@click.argument("socket", required=False, type=click.Path(path_type=Path))
@click.option("--nsid", type=click.IntRange(1), help="Namespace.  [default: the first active one]")
@click.option(
    "--destructive", is_flag=True, help="Run the checks that write to the namespace, too."
)
@click.option(
    "--private-memory",
    is_flag=True,
    help="Do not share memory: the controller reaches it with messages (DMA_READ, DMA_WRITE).",
)
@click.option(
    "-k", "words", multiple=True, metavar="WORD", help="Only checks whose name has this word."
)
@click.option("--list", "list_only", is_flag=True, help="Show the checks and run none.")
@json_option
@click.option("-v", "--verbose", is_flag=True, help="Show the checks that pass, too.")
def conformance(
    *,
    socket: Path | None,
    nsid: int | None,
    destructive: bool,
    private_memory: bool,
    words: tuple[str, ...],
    list_only: bool,
    as_json: bool,
    verbose: bool,
) -> int:
    """Check the NVMe controller behind any vfio-user SOCKET against the specifications.

    Each check tries one sentence of the NVM Express Base Specification, the NVM Command Set
    Specification or NVMe over PCIe, whose section it names. What a controller does not advertise
    does not apply to it. The controller is reset many times, and must have no other client.
    Without --destructive nothing is written to its namespaces.
    """
    checks = _select(words)
    if list_only:
        _list(checks, as_json=as_json)
        return 0
    if socket is None:
        raise UserError("which controller? give the socket that it is served on")
    if nsid is not None:
        _check_namespace(socket, nsid, share_memory=not private_memory)
    results = _run(
        checks,
        socket,
        nsid,
        destructive,
        share_memory=not private_memory,
        show=not as_json,
        verbose=verbose,
    )
    counts = _counts(results)
    if as_json:
        data = {"summary": counts, "checks": [result.to_json() for result in results]}
        click.echo(json.dumps(data, indent=2))
    else:
        click.echo(", ".join(f"{count} {name}" for name, count in counts.items()))
    return _EXIT_FAILED if counts["failed"] else 0


def _check_namespace(socket: Path, nsid: int, *, share_memory: bool) -> None:
    """HostError: there is none of this NSID, for every check to find out."""
    from nvme_mdev.host.driver import NvmeHost

    with NvmeHost(socket, share_memory=share_memory) as host:
        host.namespace(nsid)


def _select(words: Sequence[str]) -> list[Check]:
    from nvme_mdev.conformance.checks import all_checks

    found = [
        check for check in all_checks() if not words or any(word in check.id for word in words)
    ]
    if not found:
        raise UserError(f"no check is called like {' or '.join(words)}: --list shows them")
    return found


def _list(checks: Sequence[Check], *, as_json: bool) -> None:
    if as_json:
        data = [
            {
                "check": check.id,
                "sentence": check.sentence,
                "sections": list(check.sections),
                "destructive": check.destructive,
            }
            for check in checks
        ]
        click.echo(json.dumps(data, indent=2))
        return
    for check in checks:
        mark = " (destructive)" if check.destructive else ""
        click.echo(f"{check.id}: {check.sentence}. {', '.join(check.sections)}{mark}")


def _run(
    checks: Sequence[Check],
    socket: Path,
    nsid: int | None,
    destructive: bool,
    *,
    share_memory: bool,
    show: bool,
    verbose: bool,
) -> list[Result]:
    from nvme_mdev.conformance.runner import Outcome, run

    results = []
    for result in run(
        checks, socket, nsid=nsid, destructive=destructive, share_memory=share_memory
    ):
        results.append(result)
        if show and (verbose or result.outcome is Outcome.FAILED):
            _show(result)
    return results


def _show(result: Result) -> None:
    check = result.check
    click.echo(f"{result.outcome.value:{_NAME_WIDTH}} {check.id} ({', '.join(check.sections)})")
    click.echo(f"{'':{_NAME_WIDTH}} {check.sentence}.")
    if result.why:
        click.echo(f"{'':{_NAME_WIDTH}} {result.why}")


def _counts(results: Sequence[Result]) -> dict[str, int]:
    from nvme_mdev.conformance.runner import Outcome

    return {
        outcome.value: sum(result.outcome is outcome for result in results) for outcome in Outcome
    }
