"""docs/conformance.md says what the controller does, and names checks and tests that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from nvme_mdev.conformance.checks import GROUPS, all_checks
from nvme_mdev.host import commands
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_commands import AdminOpcode, NvmOpcode
from nvme_mdev.spec.nvme_features import Fid
from nvme_mdev.spec.nvme_identify import Cns
from nvme_mdev.spec.nvme_logs import (
    CommandEffect,
    CommandsEffectsLog,
    FeatureEffect,
    FeatureEffectsLog,
    LogPage,
    LogPageSupport,
    SupportedLogPages,
)
from nvme_mdev.spec.nvme_registers import CapBit, Register
from nvme_mdev.spec.nvme_status import GenericStatus

from .test_serve import ERASABLE, IMAGE, MEMORY, MESSAGES

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "conformance.md").read_text()
VENDOR = 0xC0
"""Where vendor specific opcodes, features and log pages begin."""


class Row(NamedTuple):
    number: int
    here: str
    shown_by: str


def _rows(title: str) -> list[Row]:
    """The rows of a section's table, by the number in their first column."""
    section = PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    found = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"[0-9A-F]+h|\d+", cells[0]):
            number = int(cells[0][:-1], 16) if cells[0].endswith("h") else int(cells[0])
            found.append(Row(number, cells[-2], cells[-1]))
    return found


def _set_bits(words: object, bit: int) -> set[int]:
    return {index for index, word in enumerate(words) if word & bit and index < VENDOR}  # type: ignore[arg-type, var-annotated]


def _admin(host: NvmeHost) -> set[int]:
    return _set_bits(_effects(host).acs, CommandEffect.CSUPP)


def _io(host: NvmeHost) -> set[int]:
    return _set_bits(_effects(host).iocs, CommandEffect.CSUPP)


def _effects(host: NvmeHost) -> CommandsEffectsLog:
    page = host.get_log_page(LogPage.COMMANDS_EFFECTS, 4096)
    return CommandsEffectsLog.from_buffer_copy(page)


def _log_pages(host: NvmeHost) -> set[int]:
    page = host.get_log_page(LogPage.SUPPORTED_LOG_PAGES, 1024, nsid=0)
    return _set_bits(SupportedLogPages.from_buffer_copy(page).lids, LogPageSupport.LSUPP)


def _features(host: NvmeHost) -> set[int]:
    page = host.get_log_page(LogPage.FEATURE_EFFECTS, 1024, nsid=0)
    return _set_bits(FeatureEffectsLog.from_buffer_copy(page).fids, FeatureEffect.FSUPP)


def _structures(host: NvmeHost) -> set[int]:
    found = set()
    for cns in Cns:
        nsid = 0 if cns in {Cns.ACTIVE_NSID_LIST, Cns.IOCS_ACTIVE_NSID_LIST} else 1
        cntid = 0xFFFF if cns is Cns.IO_COMMAND_SETS else 0
        sqe = commands.identify(cns, nsid, cntid=cntid)
        status = host.admin(sqe, receive=4096, check=False)
        if status.completion.status.code is not GenericStatus.INVALID_FIELD:
            found.add(int(cns))
    return found


#: Registers that are there when CAP says so: the first letters of their names, and the bit.
OPTIONAL_REGISTERS = {
    "CMB": CapBit.CMBS,
    "BP": CapBit.BPS,
    "PMR": CapBit.PMRS,
    "NSSD": CapBit.NSSS,
    "NSSR": CapBit.NSSRS,
    "CRTO": CapBit.CRWMS | CapBit.CRIMS,
}


def _registers(host: NvmeHost) -> set[int]:
    return {
        int(register)
        for register in Register
        if all(
            host.cap.bits & bit
            for letters, bit in OPTIONAL_REGISTERS.items()
            if register.name.startswith(letters)
        )
    }


def _capabilities(host: NvmeHost) -> set[int]:
    return {int(bit).bit_length() - 1 for bit in CapBit if host.cap.bits & bit}


TABLES: dict[str, tuple[type[enum.IntEnum | enum.IntFlag], Callable[[NvmeHost], set[int]]]] = {
    "Admin commands": (AdminOpcode, _admin),
    "I/O commands": (NvmOpcode, _io),
    "Identify": (Cns, _structures),
    "Log pages": (LogPage, _log_pages),
    "Features": (Fid, _features),
    "Registers": (Register, _registers),
    "Capabilities in CAP": (CapBit, _capabilities),
}


@pytest.fixture
def hosts(controller: Callable[..., Path]) -> Iterator[list[NvmeHost]]:
    """Drivers of controllers that differ in what they have; the first has what options add."""
    found: list[NvmeHost] = []
    try:
        for arguments in (ERASABLE, MEMORY, IMAGE, MESSAGES):
            found.append(NvmeHost(controller(*arguments)))  # noqa: PERF401 (closed if one fails)
        yield found
    finally:
        for host in found:
            host.close()


@pytest.mark.parametrize("title", TABLES)
def test_a_table_has_a_row_for_all_that_the_specification_names(title: str) -> None:
    numbers = [row.number for row in _rows(title)]
    wanted = [
        int(member).bit_length() - 1 if TABLES[title][0] is CapBit else int(member)
        for member in TABLES[title][0]
    ]
    assert sorted(numbers) == sorted(wanted)


@pytest.mark.parametrize("title", TABLES)
def test_what_the_page_says_is_here_is_here(title: str, hosts: list[NvmeHost]) -> None:
    look = TABLES[title][1]
    opted_in = look(hosts[0])
    found = set().union(*(look(host) for host in hosts[1:]))
    for row in _rows(title):
        assert row.here in {"yes", "no", "opt-in"}
        where = f"docs/conformance.md, {title}, {row.number:02X}h: change the row,"
        if row.here == "yes":
            assert row.number in found, f"{where} the controller does not have it"
        if row.here == "no":
            assert row.number not in found | opted_in, f"{where} the controller has it"
        if row.here == "opt-in":
            assert row.number in opted_in - found, f"{where} it is not there by an option alone"


def test_every_row_says_by_what_or_why_not() -> None:
    for title in TABLES:
        for row in _rows(title):
            assert row.shown_by, f"{title}, {row.number:02X}h"
            if row.here == "yes":
                assert "`" in row.shown_by, f"{title}, {row.number:02X}h: name a check or a test"


def test_checks_and_tests_on_the_page_exist() -> None:
    known = {check.id for check in all_checks()} | {f"{group.name}.*" for group in GROUPS}
    groups = "|".join(group.name for group in GROUPS)
    named = set(re.findall(rf"`((?:{groups})\.[\w*]+)`", PAGE))
    assert named <= known
    for path in re.findall(r"`(tests/[\w/.]+)`", PAGE):
        assert (ROOT / path).exists(), path


def test_every_group_of_checks_is_on_the_page() -> None:
    for group in GROUPS:
        assert f"`{group.name}." in PAGE, group.name
