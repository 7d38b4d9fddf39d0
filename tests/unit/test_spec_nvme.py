"""Sizes, offsets and bit fields of NVMe's structures, against the figures of the specifications."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_mdev.spec import (
    nvme_commands,
    nvme_features,
    nvme_identify,
    nvme_identify_controller,
    nvme_identify_namespace,
    nvme_logs,
    nvme_registers,
    nvme_status,
)
from nvme_mdev.spec.nvme_features import (
    Arbitration,
    InterruptCoalescing,
    InterruptVectorConfiguration,
    NumberOfQueues,
    TemperatureThreshold,
)
from nvme_mdev.spec.nvme_identify_controller import (
    IdentifyController,
    IdentifyControllerNvm,
    PowerStateDescriptor,
)
from nvme_mdev.spec.nvme_identify_namespace import (
    IdentifyNamespace,
    IdentifyNamespaceIndependent,
    IdentifyNamespaceNvm,
)
from nvme_mdev.spec.nvme_logs import ErrorLogEntry, SmartLog
from nvme_mdev.spec.nvme_registers import (
    REGISTER_SIZE,
    Aqa,
    Cap,
    Cc,
    Crto,
    Csts,
    Register,
)
from nvme_mdev.spec.nvme_status import (
    CommandStatus,
    GenericStatus,
    MediaStatus,
    PathStatus,
    Sct,
    Status,
    status_field,
)

if TYPE_CHECKING:
    from types import ModuleType

Structure = type[ctypes.LittleEndianStructure]
u32 = st.integers(0, 0xFFFF_FFFF)

SIZES: dict[Structure | type[ctypes.Structure], int] = {
    nvme_commands.SQE: 64,
    nvme_commands.CQE: 16,
    nvme_commands.SglDescriptor: 16,
    nvme_commands.DsmRange: 16,
    IdentifyController: 4096,
    IdentifyControllerNvm: 4096,
    IdentifyNamespace: 4096,
    IdentifyNamespaceNvm: 4096,
    IdentifyNamespaceIndependent: 4096,
    PowerStateDescriptor: 32,
    nvme_identify_namespace.LbaFormat: 4,
    nvme_identify.NsIdDescriptor: 4,
    nvme_identify.NsidList: 4096,
    nvme_identify.ControllerList: 4096,
    nvme_identify.IoCommandSetVectors: 4096,
    ErrorLogEntry: 64,
    SmartLog: 512,
    nvme_logs.FirmwareSlot: 8,
    nvme_logs.FirmwareSlotLog: 512,
    nvme_logs.ChangedNamespacesLog: 4096,
    nvme_logs.CommandsEffectsLog: 4096,
    nvme_logs.SupportedLogPages: 1024,
    nvme_logs.FeatureEffectsLog: 1024,
    nvme_features.Timestamp: 8,
    nvme_features.HostBehaviorSupport: 512,
    nvme_features.AutonomousPowerStateEntry: 8,
}

OFFSETS: dict[Structure, dict[str, int]] = {
    nvme_commands.SQE: {"cid": 2, "nsid": 4, "mptr": 16, "prp1": 24, "prp2": 32, "cdw10": 40},
    nvme_commands.CQE: {"sqhd": 8, "sqid": 10, "cid": 12, "status": 14},
    nvme_commands.DsmRange: {"nlb": 4, "slba": 8},
    nvme_commands.SglDescriptor: {"length": 8, "identifier": 15},
    IdentifyController: {
        "sn": 4,
        "mn": 24,
        "fr": 64,
        "rab": 72,
        "ieee": 73,
        "cmic": 76,
        "mdts": 77,
        "cntlid": 78,
        "ver": 80,
        "rtd3r": 84,
        "rtd3e": 88,
        "oaes": 92,
        "ctratt": 96,
        "cntrltype": 111,
        "fguid": 112,
        "crdt1": 128,
        "nvmsr": 253,
        "oacs": 256,
        "acl": 258,
        "aerl": 259,
        "frmw": 260,
        "lpa": 261,
        "elpe": 262,
        "npss": 263,
        "wctemp": 266,
        "cctemp": 268,
        "hmpre": 272,
        "tnvmcap": 280,
        "unvmcap": 296,
        "kas": 320,
        "sanicap": 328,
        "hmminds": 332,
        "anatt": 342,
        "nanagrpid": 348,
        "megcap": 368,
        "sqes": 512,
        "cqes": 513,
        "maxcmd": 514,
        "nn": 516,
        "oncs": 520,
        "fuses": 522,
        "fna": 524,
        "vwc": 525,
        "awun": 526,
        "awupf": 528,
        "acwu": 532,
        "sgls": 536,
        "mnan": 540,
        "subnqn": 768,
        "ioccsz": 1792,
        "dctype": 1806,
        "psd": 2048,
        "vs": 3072,
    },
    IdentifyControllerNvm: {"wzsl": 1, "dmrl": 3, "dmrsl": 4, "dmsl": 8},
    IdentifyNamespace: {
        "nsze": 0,
        "ncap": 8,
        "nuse": 16,
        "nsfeat": 24,
        "nlbaf": 25,
        "flbas": 26,
        "nmic": 30,
        "dlfeat": 33,
        "nawun": 34,
        "noiob": 46,
        "nvmcap": 48,
        "npwg": 64,
        "nows": 72,
        "mssrl": 74,
        "anagrpid": 92,
        "nsattr": 99,
        "nvmsetid": 100,
        "nguid": 104,
        "eui64": 120,
        "lbaf": 128,
        "vs": 384,
    },
    IdentifyNamespaceNvm: {"lbstm": 0, "pic": 8, "elbaf": 12, "npdgl": 268},
    IdentifyNamespaceIndependent: {"anagrpid": 4, "nsattr": 8, "endgid": 12, "nstat": 14},
    PowerStateDescriptor: {"flags": 3, "enlat": 4, "exlat": 8, "idlp": 16, "actp": 20},
    ErrorLogEntry: {
        "sqid": 8,
        "cmdid": 10,
        "sts": 12,
        "peloc": 14,
        "lba": 16,
        "nsid": 24,
        "csinfo": 32,
        "ttsi": 40,
        "lpver": 63,
    },
    SmartLog: {
        "ctemp": 1,
        "avsp": 3,
        "dur": 32,
        "duw": 48,
        "hrc": 64,
        "hwc": 80,
        "pwrc": 112,
        "poh": 128,
        "upl": 144,
        "mdie": 160,
        "neile": 176,
        "wctt": 192,
        "tsen": 200,
        "tmt1tc": 216,
    },
}


@pytest.mark.parametrize(("structure", "size"), SIZES.items())
def test_the_size_is_the_specifications(structure: Structure, size: int) -> None:
    assert ctypes.sizeof(structure) == size


@pytest.mark.parametrize(
    "module",
    [
        nvme_commands,
        nvme_features,
        nvme_identify,
        nvme_identify_controller,
        nvme_identify_namespace,
        nvme_logs,
        nvme_registers,
    ],
)
def test_no_structure_is_left_out_of_the_sizes(module: ModuleType) -> None:
    structures = {
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, ctypes.Structure)
        and value.__module__ == module.__name__
    }
    assert structures <= set(SIZES)


@pytest.mark.parametrize(
    ("structure", "field", "offset"),
    [(s, field, offset) for s, fields in OFFSETS.items() for field, offset in fields.items()],
)
def test_the_field_is_where_the_specification_says(
    structure: Structure, field: str, offset: int
) -> None:
    assert getattr(structure, field).offset == offset


@pytest.mark.parametrize("structure", SIZES)
def test_reserved_fields_are_named_after_their_offset(structure: Structure) -> None:
    names = [field[0] for field in structure._fields_]
    for name in names:
        if name.startswith("reserved") and name != "reserved":
            assert getattr(structure, name).offset == int(name.removeprefix("reserved"))


@pytest.mark.parametrize("structure", SIZES)
def test_every_field_but_the_reserved_has_a_type_for_checkers(structure: Structure) -> None:
    names = {field[0] for field in structure._fields_ if not field[0].startswith("reserved")}
    annotated = {name for name in structure.__annotations__ if not name.startswith("reserved")}
    assert annotated == names


def test_strings_are_cut_or_padded_with_blanks() -> None:
    assert nvme_identify.ascii_field("abc", 5) == b"abc  "
    assert nvme_identify.ascii_field("abcdef", 5) == b"abcde"
    with pytest.raises(UnicodeEncodeError):
        nvme_identify.ascii_field("ä", 5)


def test_a_16_byte_integer_is_little_endian() -> None:
    assert nvme_identify.u128(0x0102) == b"\2\1" + bytes(14)
    with pytest.raises(OverflowError):
        nvme_identify.u128(-1)


# --- registers ---


def test_registers_do_not_overlap() -> None:
    end = 0
    for register in sorted(Register):
        assert register >= end
        end = register + REGISTER_SIZE[register]


@given(st.integers(0, (1 << 64) - 1))
def test_cap_is_unpacked_and_packed_the_same_but_for_reserved_bits(value: int) -> None:
    reserved = 0x1F << 19 | 0x1F << 38 | 0x3 << 62  # 42:38 are command sets that nobody defined
    assert Cap.unpack(value).pack() == value & ~reserved


def test_caps_fields_are_where_the_specification_says() -> None:
    cap = Cap(mqes=1023, to=20, dstrd=1, mpsmin=0, mpsmax=4, cps=2)
    assert cap.pack() == 1023 | 1 << 16 | 20 << 24 | 1 << 32 | 1 << 37 | 2 << 46 | 4 << 52


@given(u32)
def test_cc_is_unpacked_and_packed_the_same_but_for_reserved_bits(value: int) -> None:
    assert Cc.unpack(value).pack() == value & 0x01FF_FFF1


def test_linuxs_cc_is_understood() -> None:
    assert Cc.unpack(0x460001) == Cc(en=True, iosqes=6, iocqes=4)
    assert Cc.unpack(0x464001) == Cc(en=True, iosqes=6, iocqes=4, shn=1)
    assert Cc.unpack(0x460001 | 4 << 7).page_size == 65536


@given(u32)
def test_csts_is_unpacked_and_packed_the_same_but_for_reserved_bits(value: int) -> None:
    assert Csts.unpack(value).pack() == value & 0x7F


@given(u32)
def test_aqa_and_crto_are_unpacked_and_packed_the_same(value: int) -> None:
    assert Aqa.unpack(value).pack() == value & 0x0FFF_0FFF
    assert Crto.unpack(value).pack() == value


def test_the_version_register_is_where_the_specification_says() -> None:
    assert nvme_registers.version(1, 4) == 0x0001_0400
    assert nvme_registers.version(2, 1, 3) == 0x0002_0103


@given(st.integers(0, 0xFFFF), st.integers(0, 15))
def test_doorbells_are_found_where_they_are(qid: int, dstrd: int) -> None:
    sq = nvme_registers.sq_tail_doorbell(qid, dstrd)
    cq = nvme_registers.cq_head_doorbell(qid, dstrd)
    assert nvme_registers.doorbell_at(sq, dstrd) == (qid, False)
    assert nvme_registers.doorbell_at(cq, dstrd) == (qid, True)
    assert nvme_registers.doorbell_at(sq + 1, dstrd) is None
    assert cq - sq == 4 << dstrd


def test_the_admin_doorbells_are_first() -> None:
    assert nvme_registers.sq_tail_doorbell(0) == 0x1000
    assert nvme_registers.cq_head_doorbell(0) == 0x1004
    assert nvme_registers.sq_tail_doorbell(1) == 0x1008
    assert nvme_registers.doorbell_at(0xFFC) is None


# --- status ---


@given(st.integers(0, 0x7FFF))
def test_a_status_is_unpacked_and_packed_the_same(field: int) -> None:
    assert Status.unpack(field).pack() == field


@pytest.mark.parametrize(
    ("code", "field"),
    [
        (GenericStatus.SUCCESS, 0),
        (GenericStatus.INVALID_FIELD, 0x002),
        (GenericStatus.LBA_OUT_OF_RANGE, 0x080),
        (CommandStatus.INVALID_QUEUE_ID, 0x101),
        (CommandStatus.INVALID_LOG_PAGE, 0x109),
        (MediaStatus.COMPARE_FAILURE, 0x285),
        (PathStatus.ABORTED_BY_HOST, 0x371),
    ],
)
def test_a_codes_type_follows_from_it(code: nvme_status.StatusCode, field: int) -> None:
    assert status_field(code) == field
    assert status_field(code, dnr=True) == field | 0x4000
    assert status_field(code, more=True) == field | 0x2000
    assert Status.unpack(field).code == code


def test_a_status_says_its_name() -> None:
    assert str(Status.of(MediaStatus.WRITE_FAULT, dnr=True)) == "WRITE_FAULT (SCT 2h, SC 80h) DNR"
    assert str(Status(sc=0xFF, sct=Sct.VENDOR)) == "UNKNOWN (SCT 7h, SC ffh)"
    assert Status(sc=0x7F).code is None


def test_only_generic_0_is_success() -> None:
    assert Status().success
    assert not Status.of(CommandStatus.COMPLETION_QUEUE_INVALID).success


# --- features and events ---


@given(u32)
def test_feature_values_are_unpacked_and_packed_the_same(value: int) -> None:
    assert Arbitration.unpack(value).pack() == value & nvme_features.ARBITRATION_MASK
    assert TemperatureThreshold.unpack(value).pack() == value & 0x003F_FFFF
    assert NumberOfQueues.unpack(value).pack() == value
    assert InterruptCoalescing.unpack(value).pack() == value & 0xFFFF
    assert InterruptVectorConfiguration.unpack(value).pack() == value & 0x1_FFFF


def test_an_event_names_its_log_page() -> None:
    result = nvme_commands.async_event_result(
        nvme_commands.AsyncEventType.NOTICE,
        nvme_commands.NoticeEventInfo.NS_ATTRIBUTE_CHANGED,
        nvme_logs.LogPage.CHANGED_NAMESPACES,
    )
    assert result == 0x0004_0002
