"""Encrypted namespaces as a user serves them: `key-file=`, what is refused, and deaths."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.cli.deaths import kill, killed_again_and_again, serving_pid
from tests.encryption import decrypted, make_key

from nvme_mdev.errors import UserError
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.service.targets import Target
from nvme_mdev.spec.nvme_commands import SQE, AdminOpcode
from nvme_mdev.spec.nvme_logs import LogPage

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import RunCommand, Serve

MIB = 1 << 20
DATA = b"\xa5" * 4096
CRYPTOGRAPHIC = SQE(opc=AdminOpcode.FORMAT_NVM, nsid=1, cdw10=2 << 9)
CRYPTO_ERASE = SQE(opc=AdminOpcode.SANITIZE, cdw10=4)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "disk.key")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4 * MIB))
    return path


# -- what is shown --------------------------------------------------------------------------


def test_it_is_said_to_be_encrypted_and_its_key_is_not(
    serve: Serve, nvme_mdev: RunCommand, ask: Callable[..., Any], image: Path, here: Path
) -> None:
    socket, key = here / "s", make_key(here / "disk.key")
    daemon = serve("disk.img,key-file=disk.key", "--socket", socket)
    assert "512 B blocks, encrypted)" in daemon.ready
    (namespace,) = ask("namespace", "list", socket)["namespaces"]
    assert namespace["encrypted"] is True
    assert namespace["target"] == f"{image},key-file={key}"
    assert "read-write, encrypted" in nvme_mdev("show", str(socket)).out
    added = ask("namespace", "add", socket, image.with_name("plain"), "--size", "1M")
    assert added["encrypted"] is False
    said = daemon.stop()
    assert said.status == 0
    for form in (key.read_bytes().hex(), repr(key.read_bytes())):
        assert form not in said.out + said.err


def test_the_host_finds_what_the_guest_has_written(
    serve: Serve, image: Path, key: Path, tmp_path: Path
) -> None:
    daemon = serve(f"{image},offset=1M,key-file={key}", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        host.create_queue_pair().write(1, 8, DATA, block_size=512)
    assert daemon.stop().status == 0
    data = image.read_bytes()
    assert data[:MIB] == bytes(MIB)
    assert decrypted(data[MIB + 4096 : MIB + 8192], 8, key.read_bytes()) == DATA


def test_a_namespace_that_has_grown_is_encrypted_to_its_end(
    serve: Serve, ask: Callable[..., Any], image: Path, key: Path, tmp_path: Path
) -> None:
    serve(f"{image},key-file={key}", "--socket", tmp_path / "s")
    assert ask("namespace", "resize", tmp_path / "s", 1, "6M")["size"] == 6 * MIB
    last = 6 * MIB // 512 - 8
    with NvmeHost(tmp_path / "s") as host:
        host.create_queue_pair().write(1, last, DATA, block_size=512)
    assert decrypted(image.read_bytes()[last * 512 :], last, key.read_bytes()) == DATA


def test_controllers_that_share_a_namespace_share_its_key(
    serve: Serve, ask: Callable[..., Any], image: Path, key: Path, tmp_path: Path
) -> None:
    serve(f"{image},key-file={key}", "--socket", tmp_path / "s")
    ask("controller", "add", tmp_path / "s", "--share", "--socket", tmp_path / "t")
    with NvmeHost(tmp_path / "s") as one, NvmeHost(tmp_path / "t") as other:
        one.create_queue_pair().write(1, 8, DATA, block_size=512)
        assert other.create_queue_pair().read(1, 8, 8, block_size=512) == DATA
        assert other.identify_controller().fna == 0, "erasing is not offered to several"


# -- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["null:1M,key-file=k", "memory:1M,key-file=k", "direct:/dev/nvme0n1,key-file=k"]
)
def test_only_files_and_devices_have_keys(target: str) -> None:
    with pytest.raises(UserError, match="key-file is for image files and block devices"):
        Target.parse(target)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="key-file= names no file: give one, or leave it out"):
        Target.parse("a.img,key-file=")
    with pytest.raises(UserError, match="inline-io=on is not for encrypted namespaces"):
        Target.parse("a.img,key-file=k,inline-io=on")
    with pytest.raises(UserError, match="key-file is given twice"):
        Target.parse("a.img,key-file=k,key-file=l")
    assert Target.parse("a.img,key-file=k,inline-io=off").options.key_file == "k"


def _truncate(key: Path) -> None:
    os.truncate(key, 32)


def _repeat(key: Path) -> None:
    key.write_bytes(os.urandom(32) * 2)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda key: key.unlink(), "does not exist: make one with (umask 077; head -c 64"),
        (_truncate, "has 32 bytes, and a key 64 random ones: make one with"),
        (_repeat, "its two halves are the same: make one with"),
        (lambda key: key.chmod(0o644), "is open to others: chmod 600"),
    ],
)
def test_a_key_that_is_none_is_told_and_nothing_is_left(
    refuse: Callable[..., str], key: Path, spoil: Callable[[Path], None], why: str
) -> None:
    spoil(key)
    new, socket = key.with_name("new.img"), key.with_name("s")
    line = refuse("serve", f"{new},key-file={key}", "--size", "1M", "--socket", socket)
    assert f"key-file={key}" in line
    assert why in line
    assert not new.exists()


def test_a_key_is_of_one_namespace(
    refuse: Callable[..., str], serve: Serve, image: Path, key: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(bytes(MIB))
    targets = [f"{one},key-file={key}" for one in (image, other)]
    why = "key-file is another namespace's: give each its own"
    assert why in refuse("serve", *targets, "--socket", tmp_path / "t")
    serve(targets[0], "--socket", tmp_path / "s")
    assert why in refuse("serve", targets[1], "--socket", tmp_path / "t")
    assert why in refuse("namespace", "add", tmp_path / "s", targets[1])
    again = refuse("namespace", "add", tmp_path / "s", image)
    assert "is a namespace of this daemon already" in again


def test_only_a_key_needs_libcrypto(
    refuse: Callable[..., str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvme_mdev.datapath.backends.encrypted", None)
    make_key(here / "disk.key")
    line = refuse("serve", "disk.img,key-file=disk.key", "--size", "1M", "--socket", "s")
    assert "key-file needs libcrypto" in line
    assert "install it (apt install libssl3)" in line


def test_a_daemon_without_a_key_does_not_load_it(
    serve: Serve, ask: Callable[..., Any], image: Path, here: Path
) -> None:
    daemon = serve(image, "--socket", here / "s")
    maps = Path(f"/proc/{serving_pid(daemon)}/maps")
    assert "/backends/uring." in maps.read_text()
    assert "/datapath/cipher." not in maps.read_text()
    make_key(here / "disk.key")
    ask("namespace", "add", here / "s", "new.img,key-file=disk.key", "--size", "1M")
    assert "/datapath/cipher." in maps.read_text()


# -- deaths ---------------------------------------------------------------------------------


def test_a_key_that_is_gone_when_the_process_dies_is_the_end_of_its_namespace_alone(
    serve: Serve, image: Path, key: Path, tmp_path: Path
) -> None:
    targets = [f"{image},key-file={key}", "memory:1M"]
    daemon = serve(*targets, "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        assert host.active_namespaces() == [1, 2]
        key.unlink()
        kill(daemon)
        assert host.active_namespaces() == [2]
        host.create_queue_pair().read(2, 0, 8, block_size=512)
    said = daemon.stop().err
    (line,) = [line for line in said.splitlines() if "is not served any more" in line]
    assert f"key-file={key} does not exist: make one" in line


@pytest.mark.parametrize("command", ["format", "sanitize"])
def test_a_cryptographic_erase_is_done_whenever_the_process_dies(
    serve: Serve, image: Path, key: Path, tmp_path: Path, command: str
) -> None:
    daemon = serve(f"{image},key-file={key}", "--allow-erase", "--socket", tmp_path / "s")
    seen = {key.read_bytes()}
    os.link(key, tmp_path / "first")
    with NvmeHost(tmp_path / "s", timeout=60.0) as host, killed_again_and_again(daemon, 10) as done:
        queue = host.create_queue_pair(interrupts=True)
        while not done.is_set() or len(seen) < 10:
            queue.write(1, 8, DATA, block_size=512)
            assert queue.read(1, 8, 8, block_size=512) == DATA
            before = key.read_bytes()
            if command == "format":
                host.admin(CRYPTOGRAPHIC)
            else:
                host.admin(CRYPTO_ERASE)
                while host.get_log_page(LogPage.SANITIZE_STATUS, 512)[2] & 7 == 2:
                    pass
            assert key.read_bytes() not in seen | {before}
            seen.add(key.read_bytes())
            assert queue.read(1, 8, 8, block_size=512) != DATA
        queue.write(1, 8, DATA, block_size=512)
    assert daemon.stop().status == 0
    assert (tmp_path / "first").read_bytes() == bytes(64)
    assert {one.name for one in tmp_path.iterdir() if "key" in one.name} == {"disk.key"}
    assert decrypted(image.read_bytes()[4096:8192], 8, key.read_bytes()) == DATA
