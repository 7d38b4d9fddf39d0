"""What is on the medium of an encrypted namespace, and what the guest sees of it."""

from __future__ import annotations

import itertools
import os
import random
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.encrypted import EncryptedBackend
from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.cipher import Cipher, Key
from tests.encryption import decrypted, encrypted, make_key

from .guest import COMPARE, DSM, FLUSH, PAGE, READ, WRITE, WRITE_ZEROES, Guest
from .test_block_devices import loop_device
from .test_sgl import BUCKET, DATA, LAST, descriptor, with_sgl

if TYPE_CHECKING:
    from collections.abc import Callable

    from .guest import QueuePair

SIZE = 8 << 20
MIB = 1 << 20
FUA, DEAC = 1 << 30, 1 << 25
VERIFY, COPY = 0x0C, 0x19
DNR = 0x4000
BUFFERS = 64
"""Commands that an IOThread has buffers for."""
BUFFER_SIZE = 512 << 10

IEEE_1619 = (
    "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44"
    "680a86ac35adfc3345befecb4bb188fd5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0"
    "c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca2a3e7a7d7df7b10355165c8b9a6d0a7d"
    "e8b062c4500dc4cd120c0f7418dae3d0b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f"
    "93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec583e9645e07b8d9670655ba5bbcfecc6"
    "dc3966380ad8fecb17b6ba02469a020a84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1"
    "505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae9be69a2ffeceb1bec9de244fbe15992b"
    "11b77c040f12bd8f6a975a44a0f90c29a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac"
    "6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f645e8b7e9bfdef33943054ff84011493"
    "c27b3429eaedb4ed5376441a77ed43851ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa"
    "773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151"
)
"""IEEE Std 1619-2018, annex B, vector 10: 512 bytes 00h to FFh twice, in data unit FFh."""
IEEE_KEY = (
    "2718281828459045235360287471352662497757247093699959574966967627"
    "3141592653589793238462643383279502884197169399375105820974944592"
)


@pytest.fixture
def key() -> bytes:
    return os.urandom(64)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture
def make(image: Path, key: bytes) -> Callable[..., EncryptedBackend]:
    """The image as a namespace: opened when called."""
    key_file = make_key(image.with_name("key"), key)

    def made(**options: int) -> EncryptedBackend:
        return EncryptedBackend(str(image), str(key_file), **options)

    return made


@pytest.fixture
def medium(image: Path, key: bytes) -> tuple[Path, bytes]:
    """Both."""
    return image, key


def plain(image: Path, key: bytes, start: int = 0) -> bytes:
    """What dm-crypt would show of it."""
    return decrypted(image.read_bytes()[start:], 0, key)


def data_of(size: int, seed: int = 2) -> bytes:
    return random.Random(seed).randbytes(size)


# -- the cipher -----------------------------------------------------------------------------


def key_of(value: bytes) -> Key:
    fd = os.memfd_create("key")
    try:
        os.write(fd, value)
        return Key.read(fd)
    finally:
        os.close(fd)


def test_the_vector_of_the_standard() -> None:
    cipher = Cipher(key_of(bytes.fromhex(IEEE_KEY)))
    data = bytes(range(256)) * 2
    assert cipher.encrypt(0xFF, data).hex() == IEEE_1619
    assert cipher.decrypt(0xFF, bytes.fromhex(IEEE_1619)) == data


@pytest.mark.parametrize("sector", [0, 1, (1 << 32) - 1, 1 << 32, (1 << 55) - 1])
def test_sectors_have_their_numbers_as_tweaks(key: bytes, sector: int) -> None:
    data = data_of(3 * 512)
    assert Cipher(key_of(key)).encrypt(sector, data) == encrypted(data, sector, key)
    assert Cipher(key_of(key)).decrypt(sector, encrypted(data, sector, key)) == data


def test_a_part_of_a_sector_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="whole sectors"):
        Cipher(key_of(key)).encrypt(0, bytes(100))


def test_the_memory_of_a_process_with_a_key_is_not_dumped(
    make: Callable[..., EncryptedBackend],
) -> None:
    make().close()
    assert int(Path("/proc/self/coredump_filter").read_text(), 16) == 0


# -- what is on the medium ------------------------------------------------------------------


@pytest.mark.parametrize(("block", "offset"), list(itertools.product([512, 4096], [0, 4, 512])))
@pytest.mark.parametrize("size", [4096, 20480, BUFFER_SIZE, BUFFER_SIZE + 4096, 2 * MIB])
def test_the_medium_has_what_dm_crypt_would_have(
    make: Callable[..., EncryptedBackend],
    medium: tuple[Path, bytes],
    block: int,
    offset: int,
    size: int,
) -> None:
    image, key = medium
    before = plain(image, key)
    place = 3 * 4096
    with Guest(make(block_size=block), max_transfer=4 * MIB) as guest:
        queue = guest.queue()
        source = guest.allocate(size // PAGE + 1) + offset
        target = guest.allocate(size // PAGE + 1) + offset
        data = data_of(size)
        guest.poke(source, data)
        slba = place // block
        assert queue.io(READ, target, size, slba=slba, block=block).status == 0
        assert guest.peek(target, size) == before[place : place + size]
        assert queue.io(WRITE, source, size, slba=slba, block=block).status == 0
        assert guest.peek(source, size) == data, "it is not encrypted where it is"
        assert queue.io(READ, target, size, slba=slba, block=block).status == 0
        assert guest.peek(target, size) == data
    assert plain(image, key) == before[:place] + data + before[place + size :]


def test_a_block_of_512_bytes_is_a_sector(
    make: Callable[..., EncryptedBackend], image: Path, key: bytes
) -> None:
    with Guest(make(block_size=512)) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        for lba in (0, 1, 7, 8, 9999):
            guest.poke(page, data_of(512, lba))
            assert queue.io(WRITE, page, 512, slba=lba, cdw12=FUA).status == 0
    found = plain(image, key)
    for lba in (0, 1, 7, 8, 9999):
        assert found[lba * 512 : (lba + 1) * 512] == data_of(512, lba)


def test_sectors_of_a_part_are_counted_from_its_start(
    make: Callable[..., EncryptedBackend], image: Path, key: bytes
) -> None:
    with Guest(make(offset=MIB, length=MIB)) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        guest.poke(page, data_of(PAGE))
        assert queue.io(WRITE, page, PAGE, slba=8).status == 0
    assert plain(image, key, MIB)[PAGE : 2 * PAGE] == data_of(PAGE)


@pytest.mark.parametrize("flags", [0, DEAC, FUA, DEAC | FUA])
def test_zeroes_are_encrypted_zeroes(
    make: Callable[..., EncryptedBackend], image: Path, key: bytes, flags: int
) -> None:
    before = plain(image, key)
    start, blocks = 3, 3 * BUFFER_SIZE // 512 + 5
    allocated = image.stat().st_blocks
    with Guest(make(block_size=512)) as guest:
        queue = guest.queue()
        assert (
            queue.run(queue.command(WRITE_ZEROES, slba=start, blocks=blocks, cdw12=flags)).status
            == 0
        )
    end = (start + blocks) * 512
    assert plain(image, key) == before[: start * 512] + bytes(blocks * 512) + before[end:]
    assert image.stat().st_blocks == allocated


def test_nothing_is_deallocated(make: Callable[..., EncryptedBackend], image: Path) -> None:
    before = image.read_bytes()
    backend = make()
    assert not backend.can_deallocate
    assert not backend.deallocate_zeroes
    with Guest(backend) as guest:
        queue = guest.queue()
        ranges = guest.allocate(1)
        guest.poke(ranges, struct.pack("<IIQ", 0, 8, 0))
        status = queue.run(queue.command(DSM, prp1=ranges, cdw10=0, cdw11=4)).status
        assert status == 0x001 | DNR
    assert image.read_bytes() == before


@pytest.mark.parametrize("attribute", [1, 4])
def test_deallocating_is_advice_where_another_namespace_takes_it(
    make: Callable[..., EncryptedBackend], image: Path, attribute: int
) -> None:
    before = image.read_bytes()
    with Guest(make(), MemoryBackend(MIB)) as guest:
        queue = guest.queue()
        ranges = guest.allocate(1)
        guest.poke(ranges, struct.pack("<IIQ", 0, 8, 0))
        command = queue.command(DSM, prp1=ranges, cdw10=0, cdw11=attribute)
        assert queue.run(command).status == 0
    assert image.read_bytes() == before


def test_maintenance_writes_what_the_guest_reads(
    make: Callable[..., EncryptedBackend], image: Path, key: bytes
) -> None:
    backend = make(offset=MIB)
    raw = backend.raw()
    raw.write(5 * 4096, b"\xa5" * 8192)
    assert raw.deallocate(0, MIB) is False
    backend.close()
    assert plain(image, key, MIB)[5 * 4096 : 7 * 4096] == b"\xa5" * 8192


@pytest.mark.skipif(os.geteuid() != 0, reason="block devices need root")
@pytest.mark.parametrize("block", [512, 4096])
def test_a_block_device_is_encrypted_in_sectors_of_512_bytes(
    image: Path, key: bytes, block: int
) -> None:
    with (
        loop_device(image, "--sector-size", str(block)) as device,
        Guest(EncryptedBackend(device, str(make_key(image.with_name("other"), key)))) as guest,
    ):
        assert guest.backends[0].block_size == block
        buffer = guest.allocate(2)
        guest.poke(buffer, data_of(8192))
        assert guest.queue().io(WRITE, buffer, 8192, slba=40960 // block, block=block).status == 0
    assert plain(image, key)[40960 : 40960 + 8192] == data_of(8192)


# -- SGLs, compound commands ----------------------------------------------------------------


def test_pieces_of_any_length_are_put_together(
    make: Callable[..., EncryptedBackend], image: Path, key: bytes
) -> None:
    with Guest(make()) as guest:
        queue = guest.queue()
        source, target, lists = guest.allocate(5), guest.allocate(5), guest.allocate(1)
        data = data_of(16384)
        guest.poke(source + 3, data)
        cuts = [0, 1, 600, 611, 5000, 5001, 9999, 16384]
        pieces = [(at, end - at) for at, end in itertools.pairwise(cuts)]
        guest.poke(lists, b"".join(descriptor(DATA, source + 3 + at, n) for at, n in pieces))
        first = descriptor(LAST, lists, 16 * len(pieces))
        assert queue.run(with_sgl(queue.command(WRITE, slba=5, blocks=32), first)).status == 0
        guest.poke(
            lists,
            descriptor(DATA, target + 9, 700)
            + descriptor(BUCKET, 0, 1000)
            + descriptor(DATA, target + 1709, 16384 - 1700),
        )
        read = with_sgl(queue.command(READ, slba=5, blocks=32), descriptor(LAST, lists, 48))
        assert queue.run(read).status == 0
        assert guest.peek(target + 9, 700) == data[:700]
        assert guest.peek(target + 709, 1000) == bytes(1000)
        assert guest.peek(target + 1709, 16384 - 1700) == data[1700:]
    assert plain(image, key)[5 * 512 : 37 * 512] == data


def test_a_copy_is_encrypted_for_its_place(
    make: Callable[..., EncryptedBackend], image: Path, key: bytes
) -> None:
    with Guest(make()) as guest:
        queue = guest.queue()
        buffer, ranges = guest.allocate(2), guest.allocate(1)
        guest.poke(buffer, data_of(8192))
        assert queue.io(WRITE, buffer, 8192, slba=0).status == 0
        guest.poke(ranges, struct.pack("<QQHHIQ", 0, 0, 15, 0, 0, 0))
        assert queue.run(queue.command(COPY, cdw10=100, cdw11=0, prp1=ranges)).status == 0
        assert queue.io(COMPARE, buffer, 8192, slba=100).status == 0
        assert queue.run(queue.command(VERIFY, slba=0, blocks=1000)).status == 0
    assert plain(image, key)[100 * 512 : 116 * 512] == data_of(8192)


# -- many at a time -------------------------------------------------------------------------


def run_all(queue: QueuePair, sqes: list[bytes]) -> None:
    """All of them at once; each succeeds."""
    for sqe in sqes:
        queue.put(sqe)
    queue.ring()
    assert [queue.wait().status for _ in sqes] == [0] * len(sqes)


@pytest.mark.parametrize("iothreads", [1, 2])
@pytest.mark.parametrize("size", [PAGE, 2 * BUFFER_SIZE])
def test_more_commands_than_there_are_buffers(
    make: Callable[..., EncryptedBackend], image: Path, key: bytes, size: int, iothreads: int
) -> None:
    count = 3 * BUFFERS if size == PAGE else BUFFERS + 8
    places = [n * size % SIZE for n in range(count)]
    with Guest(make(), pages=8192, iothreads=iothreads, max_transfer=4 * MIB) as guest:
        queues = [guest.queue(qid, 256) for qid in range(1, iothreads + 1)]
        buffer = guest.allocate(SIZE // PAGE)
        guest.poke(buffer, data_of(SIZE))
        prps = {place: guest.prps(buffer + place, size) for place in places}

        def sqes(queue: QueuePair, opcode: int) -> list[bytes]:
            return [
                queue.command(
                    opcode, slba=at // 512, blocks=size // 512, prp1=prps[at][0], prp2=prps[at][1]
                )
                for at in places
            ]

        for queue in queues:
            run_all(queue, sqes(queue, WRITE))
        end = max(places) + size
        assert plain(image, key)[:end] == data_of(SIZE)[:end]
        guest.poke(buffer, bytes(SIZE))
        for queue in queues:
            run_all(queue, [*sqes(queue, READ), queue.command(FLUSH, cdw10=0)])
        assert guest.peek(buffer, end) == data_of(SIZE)[:end]


# -- another key ----------------------------------------------------------------------------


def test_another_key_is_used_from_the_next_command_on(
    make: Callable[..., EncryptedBackend], image: Path, key: bytes
) -> None:
    backend = make()
    with Guest(backend, iothreads=2) as guest:
        queues = [guest.queue(qid) for qid in (1, 2)]
        page = guest.allocate(1)
        guest.poke(page, data_of(PAGE))
        assert queues[0].io(WRITE, page, PAGE, slba=0).status == 0
        new = backend.new_key()
        second = image.with_name("key").read_bytes()
        assert second != key
        backend.use_key(new)
        backend.forget_old_key()
        for queue in queues:
            assert queue.io(READ, page, PAGE, slba=0).status == 0
            assert guest.peek(page, PAGE) == plain(image, second)[:PAGE]
        guest.poke(page, data_of(PAGE))
        assert queues[1].io(WRITE, page, PAGE, slba=8).status == 0
    assert plain(image, second)[PAGE : 2 * PAGE] == data_of(PAGE)
    with Guest(make()) as guest:
        page = guest.allocate(1)
        assert guest.queue().io(READ, page, PAGE, slba=8).status == 0
        assert guest.peek(page, PAGE) == data_of(PAGE)


# -- what goes wrong ------------------------------------------------------------------------


def test_a_read_that_fails_gives_the_guest_nothing(
    make: Callable[..., EncryptedBackend], image: Path
) -> None:
    with Guest(make()) as guest:
        queue = guest.queue()
        page = guest.allocate(2)
        guest.poke(page, b"\x5a" * 2 * PAGE)
        os.truncate(image, MIB)
        assert queue.io(READ, page, 2 * PAGE, slba=MIB // 512).status & 0x7FF == 0x281
        assert guest.peek(page, 2 * PAGE) == b"\x5a" * 2 * PAGE
        zeroes = queue.command(WRITE_ZEROES, slba=0, blocks=8)
        assert queue.run(zeroes).status == 0


def test_a_read_only_image_is_decrypted_and_not_written(
    make: Callable[..., EncryptedBackend], image: Path, key: bytes
) -> None:
    before = image.read_bytes()
    with Guest(make(read_only=True)) as guest:
        queue = guest.queue()
        page = guest.allocate(1)
        assert queue.io(WRITE, page, PAGE, slba=0).status == 0x20 | DNR
        assert queue.io(READ, page, PAGE, slba=0).status == 0
        assert guest.peek(page, PAGE) == plain(image, key)[:PAGE]
        assert queue.run(queue.command(FLUSH, cdw10=0)).status == 0
    assert image.read_bytes() == before


def test_the_guest_never_sees_what_is_on_the_medium(
    make: Callable[..., EncryptedBackend], image: Path, key: bytes
) -> None:
    """Not even if it looks all the time: at the end of a long read, which is decrypted last."""
    size = BUFFER_SIZE
    ciphertext = image.read_bytes()[size - 16 : size]
    with Guest(make()) as guest:
        queue = guest.queue()
        buffer = guest.allocate(size // PAGE)
        prp1, prp2 = guest.prps(buffer, size)
        seen = set()
        for _ in range(20):
            guest.poke(buffer + size - 16, bytes(16))
            queue.put(queue.command(READ, blocks=size // 512, prp1=prp1, prp2=prp2))
            queue.ring()
            while queue.poll() is None:
                seen.add(guest.peek(buffer + size - 16, 16))
            queue.doorbell(queue.head, completion=True)
            assert guest.peek(buffer + size - 16, 16) == plain(image, key)[size - 16 : size]
        assert bytes(16) in seen
        assert ciphertext not in seen
