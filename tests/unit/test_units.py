"""Sizes as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_mdev.errors import UserError
from nvme_mdev.units import MAX_SIZE, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("512B", 512),
        ("4k", 4096),
        ("4K", 4096),
        ("4 KiB", 4096),
        ("1.5M", 3 << 19),
        ("10G", 10 << 30),
        ("10GB", 10 << 30),
        ("2TiB", 2 << 40),
        (" 1P ", 1 << 50),
    ],
)
def test_sizes_have_binary_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "1X", "-1G", "0x10", "1e9", "1..5G", "one", "1G1", "\u0661K"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a size.*10G"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0K", "8E", "100000000T", "9223372036854775808"])
def test_sizes_outside_the_range_of_a_file_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="out of range"):
        parse_size(text)


def test_fractions_of_a_byte_are_refused() -> None:
    with pytest.raises(UserError, match="smaller unit"):
        parse_size("0.3K")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1 << 30, "1 GiB"),
        ((1 << 30) + 1, "1 GiB"),
        (5 << 40, "5 TiB"),
    ],
)
def test_sizes_are_shown_in_the_largest_unit(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(1, MAX_SIZE))
def test_a_number_of_bytes_is_read_as_itself(size: int) -> None:
    assert parse_size(str(size)) == size


@given(st.integers(1, 1023), st.sampled_from("KMGTP"))
def test_what_is_shown_can_be_read_again(number: int, unit: str) -> None:
    size = parse_size(f"{number}{unit}")
    assert parse_size(format_size(size)) == size
