"""What the host's block layer is told of a namespace that it is given (host/block_device.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.datapath.backends.uring import UringBackend
from nvme_mdev.host.block_device import parameters
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.ublk import Attribute, Params, ParamType

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvme_mdev.datapath.backends.base import Backend
    from tests.controller.conftest import Served

MIB = 1 << 20


def told(serve: Callable[..., Served], backend: Backend, *, read_only: bool = False) -> Params:
    served = serve(backend)
    with NvmeHost(served.path) as host:
        return parameters(host, host.namespace(1), 128 << 10, read_only=read_only)


def test_sizes_are_in_sectors_whatever_the_blocks_are(serve: Callable[..., Served]) -> None:
    params = told(serve, MemoryBackend(4 * MIB, 4096))
    assert params.dev_sectors == 4 * MIB // 512
    assert params.max_sectors == 256
    assert (params.logical_bs_shift, params.physical_bs_shift) == (12, 12)
    assert params.types == ParamType.BASIC | ParamType.DISCARD
    assert params.discard_granularity == 4096
    assert params.max_discard_sectors % 8 == 0
    assert params.max_write_zeroes_sectors == MIB // 512


def test_a_volatile_cache_is_flushed_and_one_that_is_not_there_is_not(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    cached = told(serve, UringBackend(str(image)))
    assert cached.attrs == Attribute.VOLATILE_CACHE | Attribute.FUA
    assert told(serve, MemoryBackend(MIB, 512)).attrs == 0


def test_what_is_write_protected_or_wanted_so_is_a_read_only_disk(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    protected = told(serve, UringBackend(str(image), read_only=True))
    assert protected.attrs & Attribute.READ_ONLY
    assert told(serve, MemoryBackend(MIB, 512), read_only=True).attrs & Attribute.READ_ONLY
