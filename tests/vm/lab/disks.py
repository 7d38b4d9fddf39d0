"""Disk images that a firmware can boot from."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .prepare import BootLoader, Lab

MIB = 1 << 20
SECTOR = 512
PRINTED_SECTORS = 16  # more than two pages: the firmware needs a PRP list for it
ESP_START = 1 * MIB
ESP_SIZE = 128 * MIB
ROOT_SIZE = 64 * MIB
AFTER_ROOT = 1 * MIB  # the backup of the partition table
GRUB_CONFIGURATION = """\
set root=(hd0,gpt2)
linux /vmlinuz {append}
initrd /initramfs.img
boot
"""

# Reads PRINTED_SECTORS from the end of the disk with the BIOS's extended read (int 13h, ah=42h,
# drive in dl) and prints what it read, up to a zero byte, to the first serial port.
BOOT_CODE = bytes.fromhex(
    "31c0"  # 00      xor ax, ax
    "8ed8"  # 02      mov ds, ax
    "8ed0"  # 04      mov ss, ax
    "bc007c"  # 06    mov sp, 0x7c00
    "be407c"  # 09    mov si, packet
    "b442"  # 0c      mov ah, 0x42
    "cd13"  # 0e      int 0x13
    "7219"  # 10      jc stop
    "be0080"  # 12    mov si, 0x8000
    "ac"  # 15 next:  lodsb
    "84c0"  # 16      test al, al
    "7411"  # 18      jz stop
    "50"  # 1a        push ax
    "bafd03"  # 1b    mov dx, 0x3fd     line status
    "ec"  # 1e wait:  in al, dx
    "a820"  # 1f      test al, 0x20     transmitter empty
    "74fb"  # 21      jz wait
    "58"  # 23        pop ax
    "baf803"  # 24    mov dx, 0x3f8
    "ee"  # 27        out dx, al
    "ebeb"  # 28      jmp next
    "90"  # 2a        nop
    "f4"  # 2b stop:  hlt
    "ebfd"  # 2c      jmp stop
)
PACKET_OFFSET = 0x40
LOAD_ADDRESS = 0x8000
SIGNATURE = b"\x55\xaa"


def write_printing_boot_sector(image: Path, text: str) -> None:
    """Make a disk that prints `text`, read from its last sectors, when a BIOS boots it."""
    size = image.stat().st_size
    last = size - PRINTED_SECTORS * SECTOR
    packet = (
        bytes([16, 0])
        + PRINTED_SECTORS.to_bytes(2, "little")
        + LOAD_ADDRESS.to_bytes(4, "little")
        + (last // SECTOR).to_bytes(8, "little")
    )
    sector = BOOT_CODE.ljust(PACKET_OFFSET, b"\0") + packet
    content = text.encode().ljust(PRINTED_SECTORS * SECTOR, b"\0")
    with image.open("r+b") as disk:
        disk.write(sector.ljust(SECTOR - len(SIGNATURE), b"\0") + SIGNATURE)
        disk.seek(last)
        disk.write(content)


def write_efi_disk(lab: Lab, image: Path, loader: BootLoader, kernel: str, append: str) -> None:
    """Make a GPT disk that boots one of the lab's kernels: by systemd-boot from its EFI system
    partition, or by GRUB from an ext4 file system, the second partition, as Debian installs it.
    """
    size = ESP_START + ESP_SIZE + ROOT_SIZE + AFTER_ROOT
    with image.open("ab") as disk:
        disk.truncate(max(size, image.stat().st_size))
    partitions = (
        f"label: gpt\n"
        f"start={ESP_START // SECTOR}, size={ESP_SIZE // SECTOR}, type=uefi\n"
        f"start={(ESP_START + ESP_SIZE) // SECTOR}, size={ROOT_SIZE // SECTOR}, type=linux\n"
    )
    tool(lab, "sfdisk", ["--quiet", "--no-reread", str(image)], partitions)
    offset = ESP_START // SECTOR
    blocks = ESP_SIZE // 1024
    tool(lab, "mkfs.fat", ["-F", "32", f"--offset={offset}", str(image), str(blocks)])
    files = {"EFI/BOOT/BOOTX64.EFI": lab.boot_loader(loader).read_bytes()}
    boot_files = boot_directory(lab, kernel)
    if loader == "systemd-boot":
        files |= boot_files
        files["loader/loader.conf"] = b"default lab.conf\ntimeout 0\n"
        entry = f"title lab\nlinux /vmlinuz\ninitrd /initramfs.img\noptions {append}\n"
        files["loader/entries/lab.conf"] = entry.encode()
        boot_files = {}
    else:
        files["EFI/debian/grub.cfg"] = GRUB_CONFIGURATION.format(append=append).encode()
    fill_fat(lab, f"{image}@@{ESP_START}", files)
    write_ext4(lab, image, ESP_START + ESP_SIZE, ROOT_SIZE, boot_files)


def boot_directory(lab: Lab, kernel: str) -> dict[str, bytes]:
    """What a boot loader, or kexec, needs of one of the lab's kernels."""
    return {
        "vmlinuz": lab.kernels[kernel].read_bytes(),
        "initramfs.img": lab.initramfs[kernel].read_bytes(),
    }


def fill_fat(lab: Lab, partition: str, files: dict[str, bytes]) -> None:
    """Put files on a FAT file system, as mtools names it."""
    folders = {parent for name in files for parent in PurePath(name).parents if parent.name}
    names = [f"::/{folder}" for folder in sorted(folders)]
    tool(lab, "mtools", ["-c", "mmd", "-i", partition, *names])
    for name, content in files.items():
        tool(lab, "mtools", ["-c", "mcopy", "-i", partition, "-", f"::/{name}"], content)


def write_ext4(lab: Lab, image: Path, offset: int, size: int, files: dict[str, bytes]) -> None:
    """Make an ext4 file system with these files in a part of a disk, all in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        place = ["-E", f"offset={offset}", "-d", folder, str(image), f"{size // 1024}k"]
        tool(lab, "mkfs.ext4", ["-q", "-F", *place])


def tool(lab: Lab, program: str, arguments: Sequence[str], stdin: str | bytes = b"") -> None:
    """Run a program of the chroot on files of the host."""
    done = subprocess.run(
        [*lab.command(program), *arguments],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace")
        raise RuntimeError(f"{program} {' '.join(arguments)}: {said}")
