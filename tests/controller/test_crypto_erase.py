"""Cryptographic erase: Format NVM and Sanitize that give encrypted namespaces another key."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.key_file import KeyFile
from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_identify_controller import Fna
from nvme_mdev.spec.nvme_maintenance import SANITIZE_GDE, Sanicap, SanitizeState
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus
from tests.encryption import blank, decrypted

from .assembly import SIZE
from .statuses import error_log, refused
from .test_erase import (
    ALL,
    AUSE,
    BLOCK_ERASE,
    DATA,
    NDAS,
    SANITIZED,
    ends,
    format_nvm,
    queue_with_data,
    sanitize,
    sanitize_log,
    sanitized,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvme_mdev.host.io import IoQueue
    from tests.controller.conftest import Served

CRYPTO_ERASE = 4
CRYPTOGRAPHIC = 2


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        path.write_bytes(bytes(SIZE))
    return paths


@pytest.fixture
def served(serve: Callable[..., Served], images: list[Path]) -> Served:
    return serve(*(blank(str(path)) for path in images), allow_erase=True)


@pytest.fixture
def queue(host: NvmeHost) -> IoQueue:
    return queue_with_data(host)


def key(image: Path) -> bytes:
    return image.with_suffix(".key").read_bytes()


def noise(image: Path, old: bytes) -> set[bytes]:
    """What the ends of an image read as that nobody has written since its key was changed."""
    data = image.read_bytes()
    last = len(data) - 4096
    assert {decrypted(data[at : at + 4096], at // 512, old) for at in (0, last)} == {DATA}
    return {decrypted(data[at : at + 4096], at // 512, key(image)) for at in (0, last)}


def test_it_is_offered_where_every_namespace_has_a_key(served: Served, host: NvmeHost) -> None:
    assert host.identify_controller().fna == Fna.CES
    ways = Sanicap.CES | Sanicap.BES | Sanicap.OWS | Sanicap.NODMMAS_NOT_MODIFIED
    assert host.identify_controller().sanicap == ways
    backend = MemoryBackend(SIZE)
    served.backends.append(backend)
    served.call(served.controller.add_namespace, 3, backend)
    host.reset()
    assert host.identify_controller().fna == 0
    assert host.identify_controller().sanicap == ways & ~Sanicap.CES
    with refused(GenericStatus.INVALID_FIELD):
        host.admin(sanitize(CRYPTO_ERASE))
    for nsid in (3, ALL):
        with refused(GenericStatus.INVALID_FIELD):
            host.admin(format_nvm(nsid=nsid, ses=CRYPTOGRAPHIC))
        assert error_log(host)[0].peloc == 41
    host.admin(format_nvm(nsid=1, ses=CRYPTOGRAPHIC))


def test_without_the_users_consent_there_is_none(
    serve: Callable[..., Served], images: list[Path]
) -> None:
    served = serve(blank(str(images[0])))
    with NvmeHost(served.path) as host:
        assert (host.identify_controller().fna, host.identify_controller().sanicap) == (0, 0)
        with refused(GenericStatus.INVALID_OPCODE):
            host.admin(format_nvm(ses=CRYPTOGRAPHIC))


def test_a_cryptographic_format_gives_its_namespace_alone_another_key(
    host: NvmeHost, queue: IoQueue, images: list[Path]
) -> None:
    before = [key(image) for image in images]
    host.admin(format_nvm(ses=CRYPTOGRAPHIC))
    assert key(images[0]) != before[0]
    assert key(images[1]) == before[1]
    assert ends(queue, 1) == noise(images[0], before[0])
    assert DATA not in ends(queue, 1)
    assert ends(queue, 2) == {DATA}
    queue.write(1, 0, DATA, block_size=512)
    assert queue.read(1, 0, 8, block_size=512) == DATA
    assert decrypted(images[0].read_bytes()[:4096], 0, key(images[0])) == DATA


def test_a_cryptographic_format_of_all(host: NvmeHost, queue: IoQueue, images: list[Path]) -> None:
    before = [key(image) for image in images]
    host.admin(format_nvm(nsid=ALL, ses=CRYPTOGRAPHIC))
    for nsid, image in enumerate(images, 1):
        assert ends(queue, nsid) == noise(image, before[nsid - 1])


def test_a_cryptographic_format_changes_the_block_size_too(
    host: NvmeHost, queue: IoQueue, images: list[Path]
) -> None:
    before = key(images[0])
    host.admin(format_nvm(1, ses=CRYPTOGRAPHIC))
    assert host.identify_namespace(1).flbas == 1
    assert key(images[0]) != before
    queue.write(1, 3, DATA, block_size=4096)
    assert queue.read(1, 3, 1, block_size=4096) == DATA
    with refused(CommandStatus.INVALID_FORMAT):
        host.admin(format_nvm(2, ses=CRYPTOGRAPHIC))


@pytest.mark.parametrize("flags", [0, NDAS, AUSE])
def test_a_crypto_erase_gives_all_namespaces_other_keys_and_tells(
    host: NvmeHost, queue: IoQueue, images: list[Path], flags: int
) -> None:
    before = [key(image) for image in images]
    host.request_events()
    host.admin(sanitize(CRYPTO_ERASE | flags))
    assert host.events(60) == [SANITIZED]
    data = sanitize_log(host)
    assert (data.sprog, data.sstat) == (0xFFFF, SanitizeState.COMPLETED | SANITIZE_GDE)
    assert data.scdw10 == CRYPTO_ERASE | flags
    for nsid, image in enumerate(images, 1):
        assert ends(queue, nsid) == noise(image, before[nsid - 1])
    queue.write(1, 0, DATA, block_size=512)
    assert not sanitize_log(host).sstat & SANITIZE_GDE


def test_the_data_is_there_until_the_key_is_gone(
    host: NvmeHost, queue: IoQueue, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that cannot be replaced: nothing is lost, and the guest is told."""
    before = key(images[0])

    def fail(_file: KeyFile, _key: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(KeyFile, "replace", fail)
        with refused(GenericStatus.INTERNAL_ERROR, dnr=False):
            host.admin(format_nvm(ses=CRYPTOGRAPHIC))
        assert key(images[0]) == before
        assert ends(queue, 1) == {DATA}
        host.admin(sanitize(CRYPTO_ERASE | AUSE))
        assert sanitized(host).sstat & 7 == SanitizeState.FAILED
        host.admin(sanitize(1))
        assert ends(queue, 1) == {DATA}
    host.admin(sanitize(CRYPTO_ERASE))
    assert sanitized(host).sstat & 7 == SanitizeState.COMPLETED


def test_an_old_key_that_may_still_be_read_is_an_error(
    host: NvmeHost, queue: IoQueue, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The namespace goes on with what is in its file, which the next process would find."""

    def fail(_file: KeyFile) -> None:
        raise OSError(5, os.strerror(5))

    before = key(images[0])
    monkeypatch.setattr(KeyFile, "forget_old", fail)
    with refused(GenericStatus.INTERNAL_ERROR, dnr=False):
        host.admin(format_nvm(ses=CRYPTOGRAPHIC))
    assert ends(queue, 1) == noise(images[0], before)
    queue.write(1, 0, DATA, block_size=512)
    assert decrypted(images[0].read_bytes()[:4096], 0, key(images[0])) == DATA


def test_other_ways_of_erasing_keep_the_key(
    host: NvmeHost, queue: IoQueue, images: list[Path]
) -> None:
    before = [key(image) for image in images]
    host.admin(format_nvm(ses=1))
    host.admin(sanitize(BLOCK_ERASE))
    sanitized(host)
    assert [key(image) for image in images] == before
    for image in images:
        assert decrypted(image.read_bytes()[:8192], 0, key(image)) == bytes(8192)
