"""The register page: accesses of any size, and which registers they touch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_mdev.controller.registers import Registers
from nvme_mdev.controller.settings import ControllerSettings
from nvme_mdev.spec.nvme_registers import Cap, CapBit, Register, version

SETTINGS = ControllerSettings("S1", queue_entries=1024)


def registers(*, alone: bool = True) -> Registers:
    page = Registers(memoryview(bytearray(4096)))
    page.reset(SETTINGS, alone=alone)
    return page


def test_cap_says_what_the_settings_say() -> None:
    cap = Cap.unpack(registers()[Register.CAP])
    assert cap.mqes == 1023
    command_sets = CapBit.CSS_NCSS | CapBit.CSS_IOCSS
    assert cap.bits == CapBit.AMS_WRR | CapBit.NSSRS | command_sets | CapBit.CRWMS
    assert (cap.dstrd, cap.mpsmin, cap.mpsmax) == (3, 0, 4)


def test_there_is_no_subsystem_reset_where_there_are_several_controllers() -> None:
    alone, other = (
        Cap.unpack(registers(alone=alone)[Register.CAP]).bits for alone in (True, False)
    )
    assert alone ^ other == CapBit.NSSRS
    assert alone & CapBit.NSSRS


def test_ready_takes_no_longer_than_crto_and_cap_say() -> None:
    page = registers()
    assert page[Register.CRTO] == Cap.unpack(page[Register.CAP]).to
    assert page[Register.CRTO] * 500 >= SETTINGS.io_timeout_ms


def test_the_version_is_2_0() -> None:
    assert registers()[Register.VS] == version(2, 0)


def test_a_64_bit_register_is_read_in_halves() -> None:
    page = registers()
    assert page.read(0, 4) + page.read(4, 4) == page.read(0, 8)


def test_a_64_bit_register_is_written_in_halves() -> None:
    page = registers()
    for offset, half in ((0x28, 0xABCD_E000), (0x2C, 0x12)):
        for register, value in page.writes(offset, half.to_bytes(4, "little")):
            page[register] = value
    assert page[Register.ASQ] == 0x12_ABCD_E000


def test_address_bits_below_a_page_are_not_kept() -> None:
    assert dict(registers().writes(0x30, b"\xff" * 8)) == {Register.ACQ: 0xFFFF_FFFF_FFFF_F000}


def test_a_byte_write_keeps_the_other_bytes_of_a_value() -> None:
    page = registers()
    page[Register.AQA] = 0x001F_001F
    assert dict(page.writes(0x26, b"\x3f")) == {Register.AQA: 0x003F_001F}


def test_a_byte_write_to_a_trigger_has_zeros_around_it() -> None:
    page = registers()
    page[Register.INTMS] = 0xFF
    assert dict(page.writes(0x0D, b"\x01")) == {Register.INTMS: 0x0100}


@pytest.mark.parametrize("offset", [Register.CAP, Register.VS, Register.CRTO, Register.CMBSZ])
def test_read_only_registers_are_not_written(offset: int) -> None:
    assert not dict(registers().writes(offset, b"\xff" * 4))


def test_one_write_may_touch_several_registers() -> None:
    touched = [register for register, _ in registers().writes(0, b"\xff" * 64)]
    assert touched == [
        Register.INTMS,
        Register.INTMC,
        Register.CC,
        Register.CSTS,
        Register.NSSR,
        Register.AQA,
        Register.ASQ,
        Register.ACQ,
    ]


@given(offset=st.integers(0, 4095), data=st.binary(max_size=128))
def test_any_write_yields_values_that_fit_their_registers(offset: int, data: bytes) -> None:
    page = registers()
    for register, value in page.writes(offset, data):
        page[register] = value


@given(offset=st.integers(0, 5000), size=st.integers(0, 5000))
def test_any_read_has_the_size_that_was_asked_for(offset: int, size: int) -> None:
    assert len(registers().read(offset, size)) == size
