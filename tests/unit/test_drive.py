"""What a guest is told of a namespace of the controller below."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nvme_mdev.datapath.backends.drive import (
    Atomicity,
    CommandLimits,
    CopyLimits,
    DriveNamespace,
    atomicity_of,
    describe,
)
from nvme_mdev.spec.nvme_identify_controller import IdentifyController, Oncs, Sgls, Vwc
from nvme_mdev.spec.nvme_identify_namespace import Dlfeat, IdentifyNamespace, Nsattr, Nsfeat

ALL = Oncs.NVMCMPS | Oncs.NVMWUSV | Oncs.NVMWZSV | Oncs.NVMDSMSV | Oncs.NVMVFYS | Oncs.NVMCPYS


def drive(
    controller: dict[str, int] | None = None, namespace: dict[str, int] | None = None, **part: int
) -> DriveNamespace:
    told = IdentifyNamespace(nsze=10000, **(namespace or {}))
    told.lbaf[0].lbads = 9
    told.lbaf[1].lbads = 12
    told.lbaf[2].lbads, told.lbaf[2].ms = 9, 8
    told.lbaf[3].lbads = 16
    return describe(
        IdentifyController(**(controller or {})), told, name="d", identity="i", nsid=1, **part
    )


def test_a_drive_that_can_nothing_but_read_and_write() -> None:
    assert drive() == DriveNamespace("d", "i", 1, 512, 0, 10000, 2 << 20)


def test_a_drive_that_can_everything() -> None:
    found = drive(
        {"oncs": ALL, "vwc": Vwc.VWCP, "mdts": 5},
        {"dlfeat": Dlfeat.READS_ZEROES, "nsattr": Nsattr.CWP, "flbas": 1, "mssrl": 128, "mcl": 256},
    )
    assert found == replace(
        drive(),
        block_size=4096,
        max_transfer=131072,
        read_only=True,
        volatile_cache=True,
        can_compare=True,
        can_write_zeroes=True,
        can_deallocate=True,
        deallocate_zeroes=True,
        can_verify=True,
        can_write_uncorrectable=True,
        copy_limits=CopyLimits(128, 256, 1),
    )


@pytest.mark.parametrize(
    ("controller", "namespace", "start", "atomicity"),
    [
        # A block is atomic anyhow.
        ({}, {}, 0, None),
        ({}, {"nabsn": 7}, 0, None),
        # The controller's, or the namespace's own where they are there.
        ({"awun": 7, "awupf": 3}, {}, 5, Atomicity(7, 3)),
        ({"awun": 7, "awupf": 3}, {"nawun": 15, "nawupf": 15}, 0, Atomicity(7, 3)),
        (
            {"awun": 7, "awupf": 3},
            {"nsfeat": Nsfeat.NSABP, "nawun": 15, "nawupf": 0},
            0,
            Atomicity(15, 3),
        ),
        # Boundaries move with the first block.
        ({"awun": 7}, {"nabsn": 7}, 0, Atomicity(7, 0, 7, 0, 0)),
        ({"awun": 7}, {"nabsn": 7}, 3, Atomicity(7, 0, 7, 0, 5)),
        ({"awun": 7}, {"nabsn": 7, "nabo": 2}, 3, Atomicity(7, 0, 7, 0, 7)),
        ({"awun": 7}, {"nabsn": 7, "nabo": 2}, 10, Atomicity(7, 0, 7, 0, 0)),
        ({"awun": 7, "awupf": 7}, {"nabsn": 15, "nabspf": 7}, 16, Atomicity(7, 7, 15, 7, 0)),
        # One offset cannot be right for both kinds.
        ({"awun": 7, "awupf": 7}, {"nabsn": 15, "nabspf": 7}, 8, None),
    ],
)
def test_what_a_drive_writes_whole_is_told_for_the_blocks_of_a_part(
    controller: dict[str, int],
    namespace: dict[str, int],
    start: int,
    atomicity: Atomicity | None,
) -> None:
    told = atomicity_of(IdentifyController(**controller), IdentifyNamespace(**namespace), start)
    assert told == atomicity


def test_several_namespaces_take_what_each_of_them_takes() -> None:
    assert CommandLimits.least([]) == CommandLimits()
    assert CommandLimits.least([CommandLimits(), CommandLimits(verify=7, ranges=9)]) == (
        CommandLimits(verify=7, ranges=9)
    )
    assert CommandLimits.least([CommandLimits(3, 9, 0, 5, 8), CommandLimits(5, 4, 2, 0, 8)]) == (
        CommandLimits(3, 4, 2, 5, 8)
    )


@pytest.mark.parametrize(("flbas", "what"), [(2, "512 bytes and 8 of metadata"), (3, "65536")])
def test_formats_that_cannot_be_served(flbas: int, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        drive(namespace={"flbas": flbas})


def test_optimal_sizes_hold_where_a_part_begins_on_their_boundaries() -> None:
    sizes = {"nsfeat": Nsfeat.OPTPERF, "npwg": 7, "npdg": 63, "noiob": 256}
    whole, even, odd = (drive(namespace=sizes, start=start) for start in (0, 64, 1))
    assert (whole.optimal_io_boundary, whole.preferred_write, whole.preferred_deallocate) == (
        256,
        8,
        64,
    )
    assert (even.optimal_io_boundary, even.preferred_write, even.preferred_deallocate) == (0, 8, 64)
    assert (odd.optimal_io_boundary, odd.preferred_write, odd.preferred_deallocate) == (0, 0, 0)


@pytest.mark.parametrize("part", [{"start": 10000}, {"start": 9999, "blocks": 2}, {"blocks": 0}])
def test_a_part_that_does_not_lie_within(part: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="do not lie within"):
        drive(**part)


@pytest.mark.parametrize(
    ("told", "offered"),
    [
        (0, 0),
        (3, 0),
        (Sgls.KEYED | Sgls.BIT_BUCKET, 0),
        (Sgls.BYTE_ALIGNED, Sgls.BYTE_ALIGNED),
        (Sgls.DWORD_ALIGNED | Sgls.BIT_BUCKET, Sgls.DWORD_ALIGNED | Sgls.BIT_BUCKET),
        (0xFFFF0000 | Sgls.BYTE_ALIGNED, Sgls.BYTE_ALIGNED | Sgls.BIT_BUCKET),
    ],
)
def test_sgls_are_offered_as_the_drive_takes_them(told: int, offered: int) -> None:
    assert drive({"sgls": told}).sgls == offered
