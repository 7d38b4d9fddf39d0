"""Persistent memory for an emulated machine: an NVDIMM of QEMU's, whose content is a file here.

A file system on it can be used without the page cache (DAX): what a program maps of a file is the
memory itself. Linux wants descriptors of that memory's pages for it, and they have a place there
once it is an *fsdax* namespace. `ndctl create-namespace -m fsdax` makes it one through sysfs, and
`SETUP` does the same with what busybox has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

DISK = "/dev/pmem0"
"""What the machine's kernel calls it."""
SIZE = 384 << 20
"""Of the image, in bytes: XFS wants 300 MiB, and the descriptors take 8."""
_MOST_MEMORY = "64G"
"""What a person may want to give the machine, and the NVDIMM."""
DEVICE: dict[str, object] = {"driver": "nvdimm", "memdev": "nvdimm"}
"""For ``-device``, beside the arguments that `make` returns."""
# First the whole memory is a disk, then all of it but the descriptors. The kernel finds these by
# itself the next time.
SETUP = """load nd_pmem nfit
appeared() { for i in $(seq 300); do test ! -e $1 || return 0; sleep 0.1; done; return 1; }
dax=/sys/block/pmem0/queue/dax
appeared $dax
if [ "$(cat $dax)" = 0 ]; then
    bus=/sys/bus/nd
    fsdax=$(cat $bus/devices/region0/pfn_seed)
    echo namespace0.0 >$bus/drivers/nd_pmem/unbind
    cat /proc/sys/kernel/random/uuid >$bus/devices/$fsdax/uuid
    echo pmem >$bus/devices/$fsdax/mode
    echo namespace0.0 >$bus/devices/$fsdax/namespace
    echo $fsdax >$bus/drivers/nd_pmem/bind
    appeared $dax
fi
test "$(cat $dax)" = 1
"""
"""The script that makes the disk of a booted machine fit for DAX; it can be run again."""


def make(image: Path) -> list[str]:
    """QEMU's arguments for a machine of whatever memory; makes the image, which must not exist."""
    with image.open("xb") as file:
        file.truncate(SIZE)
    backend = f"memory-backend-file,id=nvdimm,mem-path={image},size={SIZE},share=on"
    return ["-machine", "nvdimm=on", "-object", backend, "-m", f"slots=1,maxmem={_MOST_MEMORY}"]
