"""Configuration space: what a guest finds there, and which bits it can change."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvme_mdev.pci.config_space import (
    PMCSR_OFFSET,
    ConfigSpace,
    Identity,
    make_layout,
)
from nvme_mdev.spec.pci import CONFIG_SIZE, CapId, ConfigOffset, ExpDeviceCap

VECTORS = 65
LAYOUT = make_layout(Identity(vendor_id=0x1234, device_id=0x5678), VECTORS)


def space() -> ConfigSpace:
    config = ConfigSpace(memoryview(bytearray(CONFIG_SIZE)), LAYOUT)
    config.reset()
    return config


def number(config: ConfigSpace, offset: int, size: int) -> int:
    return int.from_bytes(config.read(offset, size), "little")


def write(config: ConfigSpace, offset: int, value: int, size: int) -> None:
    config.write(offset, value.to_bytes(size, "little"))


def capabilities(config: ConfigSpace) -> dict[int, int]:
    """Capability identifier to offset, by walking the list as a guest does."""
    found = {}
    offset = number(config, ConfigOffset.CAPABILITIES, 1)
    while offset:
        found[number(config, offset, 1)] = offset
        offset = number(config, offset + 1, 1)
    return found


def test_the_class_code_is_that_of_an_nvme_io_controller() -> None:
    assert space().read(ConfigOffset.CLASS_CODE, 3) == bytes([0x02, 0x08, 0x01])


def test_the_identity_is_what_was_asked_for() -> None:
    config = space()
    assert number(config, ConfigOffset.VENDOR_ID, 2) == 0x1234
    assert number(config, ConfigOffset.DEVICE_ID, 2) == 0x5678
    assert number(config, ConfigOffset.SUBSYSTEM_VENDOR_ID, 2) == 0x1234


def test_the_capability_list_has_power_management_msix_pci_express_and_msi() -> None:
    assert list(capabilities(space())) == [CapId.PM, CapId.MSIX, CapId.EXP, CapId.MSI]


def test_the_msix_capability_counts_its_vectors_from_zero() -> None:
    config = space()
    offset = capabilities(config)[CapId.MSIX]
    assert number(config, offset + 2, 2) == VECTORS - 1
    assert number(config, offset + 4, 4) == 4
    assert number(config, offset + 8, 4) == 0x1004


def test_the_function_can_be_reset_by_itself() -> None:
    config = space()
    assert number(config, capabilities(config)[CapId.EXP] + 4, 4) & ExpDeviceCap.FLR


def test_sizing_bar0_says_16_kib_of_64_bit_memory() -> None:
    config = space()
    write(config, ConfigOffset.BAR0, 0xFFFF_FFFF_FFFF_FFFF, 8)
    assert number(config, ConfigOffset.BAR0, 8) == 0xFFFF_FFFF_FFFF_C004


def test_sizing_bar4_says_8_kib_of_64_bit_memory() -> None:
    config = space()
    write(config, ConfigOffset.BAR4, 0xFFFF_FFFF_FFFF_FFFF, 8)
    assert number(config, ConfigOffset.BAR4, 8) == 0xFFFF_FFFF_FFFF_E004


def test_bars_that_are_not_there_size_to_zero() -> None:
    config = space()
    write(config, ConfigOffset.BAR2, 0xFFFF_FFFF_FFFF_FFFF, 8)
    write(config, ConfigOffset.EXPANSION_ROM, 0xFFFF_FFFF, 4)
    assert number(config, ConfigOffset.BAR2, 8) == 0
    assert number(config, ConfigOffset.EXPANSION_ROM, 4) == 0


def test_an_address_in_a_bar_is_given_back() -> None:
    config = space()
    write(config, ConfigOffset.BAR0, 0x1_FEBD_0000, 8)
    assert number(config, ConfigOffset.BAR0, 8) == 0x1_FEBD_0004


def test_power_states_between_d0_and_d3hot_are_not_taken() -> None:
    config = space()
    for state, result in ((3, 3), (1, 3), (2, 3), (0, 0), (1, 0)):
        write(config, PMCSR_OFFSET, state, 2)
        assert config.power_state == result


def test_no_soft_reset_cannot_be_written_away() -> None:
    config = space()
    write(config, PMCSR_OFFSET, 0, 2)
    assert number(config, PMCSR_OFFSET, 2) == 0x8


@given(offset=st.integers(0, CONFIG_SIZE - 1), data=st.binary(min_size=1, max_size=64))
def test_a_write_changes_only_writable_bits(offset: int, data: bytes) -> None:
    config = space()
    before = config.read(0, CONFIG_SIZE)
    config.write(offset, data)
    after = config.read(0, CONFIG_SIZE)
    for index in range(CONFIG_SIZE):
        changed = before[index] ^ after[index]
        assert changed & ~(LAYOUT.writable[index] | LAYOUT.clearable[index]) == 0
        if not offset <= index < offset + len(data):
            assert changed == 0 or index == PMCSR_OFFSET


@given(
    writes=st.lists(
        st.tuples(st.integers(0, CONFIG_SIZE - 1), st.binary(min_size=1, max_size=8)), max_size=20
    )
)
def test_the_capability_list_survives_any_writes(writes: list[tuple[int, bytes]]) -> None:
    config = space()
    for offset, data in writes:
        config.write(offset, data)
    assert list(capabilities(config)) == [CapId.PM, CapId.MSIX, CapId.EXP, CapId.MSI]
