"""Kernels that start without a firmware between: kexec, and the crash kernel of kdump, under I/O.

Both kernels are loaded from a file system on the virtual disk.
"""

from __future__ import annotations

from lab import MIB, Guest, Rig, checksum
from lab.disks import boot_directory, write_ext4
from lab.machines import kernel_arguments

SERIAL = "KEXEC"
CRASH_MEMORY = "crashkernel=192M"
DUMPED_MIB = 48


def load_kernels(guest: Guest, boot_disk: str) -> None:
    """Read the next kernel and the crash kernel from the disk; the guest keeps them."""
    common = "/mnt/vmlinuz --initrd=/mnt/initramfs.img --append="
    arguments = kernel_arguments("6.12")
    guest.sh(f"""
        mount -o ro {boot_disk} /mnt
        kexec -l {common}'{arguments} {CRASH_MEMORY} lab.next'
        kexec -p {common}'{arguments} nr_cpus=1 reset_devices lab.crash'
        umount /mnt
    """)


def start_load(guest: Guest, disk: str) -> None:
    """Commands in flight on the disk, without end."""
    guest.sh(f"""
        fio --name=load --filename={disk} --ioengine=libaio --direct=1 --rw=randrw \
            --bsrange=4k-128k --iodepth=64 --numjobs=2 --size=48M --time_based --runtime=600 \
            >/tmp/fio.log 2>&1 &
        for i in $(seq 300); do
            awk '{{exit !($9 > 0 && $5 > 100)}}' /sys/block/{disk.removeprefix("/dev/")}/stat \
                && exit 0
            sleep 0.1
        done
        cat /tmp/fio.log; exit 1
    """)


def test_reboot_kexec_and_a_crash_kernel_under_io_find_the_disk_working(rig: Rig) -> None:
    boot_image, work_image = rig.image(96 * MIB, "boot"), rig.image(64 * MIB, "work")
    write_ext4(rig.lab, boot_image, 0, 96 * MIB, boot_directory(rig.lab, "6.12"))
    before = checksum(boot_image)
    daemon = rig.serve(boot_image, work_image, options=["--serial", SERIAL])
    guest = rig.boot(daemon, append=CRASH_MEMORY, memory_mib=768)
    guest.allow("Kernel panic - not syncing: sysrq triggered crash")

    def disks() -> tuple[str, str]:
        return guest.disk(SERIAL, 1), guest.disk(SERIAL, 2)

    def works(disk: str) -> None:
        guest.fio(disk, "--rw=randrw --bsrange=4k-64k --iodepth=16 --size=8M")

    start_load(guest, disks()[1])
    guest.across_restart("reboot -f")
    boot_disk, work_disk = disks()
    works(work_disk)

    load_kernels(guest, boot_disk)
    start_load(guest, work_disk)
    guest.across_restart("kexec -e")
    assert "lab.next" in guest.sh("cat /proc/cmdline")
    boot_disk, work_disk = disks()
    works(work_disk)

    # The crashed kernel neither stops its controller nor its commands.
    load_kernels(guest, boot_disk)
    start_load(guest, work_disk)
    guest.across_restart("echo c >/proc/sysrq-trigger")
    assert "lab.crash" in guest.sh("cat /proc/cmdline")
    _, work_disk = disks()
    works(work_disk)
    dumped = guest.sh(f"""
        dd if=/proc/vmcore of={work_disk} bs=1M count={DUMPED_MIB} oflag=direct status=none
        dd if=/proc/vmcore bs=1M count={DUMPED_MIB} status=none | md5sum
        dd if={work_disk} bs=1M count={DUMPED_MIB} iflag=direct status=none | md5sum
    """).splitlines()
    assert dumped[0] == dumped[1]
    guest.power_off()
    with work_image.open("rb") as dump:
        assert dump.read(4) == b"\x7fELF"
    assert checksum(boot_image) == before
