"""Where the Unix socket of a controller is."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.errors import UserError
from nvme_mdev.service.endpoint import MAX_PATH_BYTES, socket_path

if TYPE_CHECKING:
    from pathlib import Path


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    assert socket_path(f"{tmp_path}/vm1.sock") == tmp_path / "vm1.sock"


def test_a_directory_gets_the_name_that_spdk_looks_for(tmp_path: Path) -> None:
    assert socket_path(str(tmp_path)) == tmp_path / "cntrl"
    assert socket_path(f"{tmp_path}/") == tmp_path / "cntrl"


@pytest.mark.parametrize("missing", ["no/vm1.sock", "no/"])
def test_a_missing_directory_is_refused(tmp_path: Path, missing: str) -> None:
    with pytest.raises(UserError, match=r"not a directory: create it first"):
        socket_path(f"{tmp_path}/{missing}")


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a directory"):
        socket_path(f"{tmp_path}/file/vm1.sock")


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(UserError, match="is empty"):
        socket_path("")


def test_the_longest_path_that_fits_is_taken_and_one_byte_more_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path("s" * MAX_PATH_BYTES)))
    with pytest.raises(UserError, match=r"108 bytes are too long .* shorter"):
        socket_path("s" * (MAX_PATH_BYTES + 1))
    with pytest.raises(UserError, match="too long"):
        socket_path("\u00fc" * 54)
