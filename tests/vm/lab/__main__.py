"""The lab's command line: `python -m lab prepare`, `shell`, `report`, `clean` (../README.md)."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from nvme_mdev.bench.page import html_page
from nvme_mdev.cli.bench_report import print_report

from . import hardware, hardware_report, nvdimm
from .machines import direct_boot, machine, programs_disk, vfio_user
from .packages import LabUnavailableError
from .prepare import Lab, cache_directory, clean, prepare, say
from .recipe import KERNELS
from .report import measure, usual_sweeps

KERNEL_NAMES = [kernel.name for kernel in KERNELS]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab", description="The VM lab of nvme-mdev.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="build what is missing of the lab")
    commands.add_parser("clean", help="remove the lab from the cache")
    shell = commands.add_parser("shell", help="boot a guest with a shell on its serial console")
    shell.add_argument("--socket", type=Path, action="append", default=[], help="vfio-user socket")
    shell.add_argument("--kernel", choices=KERNEL_NAMES, default="6.12")
    shell.add_argument(
        "--hardware", action="store_true", help="the host with NVMe drives, and nvme-mdev in it"
    )
    shell.add_argument("--append", default="", help="more for the kernel's command line")
    shell.add_argument("--memory", type=int, default=512, metavar="MIB")
    shell.add_argument("--smp", type=int, default=2, metavar="CPUS")
    shell.add_argument("qemu", nargs="*", help="after --: more arguments for QEMU")
    report = commands.add_parser("report", help="compare disks in a guest, as `bench report` does")
    report.add_argument("--rounds", type=int, default=5, help="each measures everything once")
    report.add_argument("--runtime", type=float, default=2.0, help="seconds of each measurement")
    report.add_argument("--quick", action="store_true", help="fewer points")
    report.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    report.add_argument("--html", type=Path, help="write a self-contained page, too")
    report.add_argument(
        "--hardware",
        action="store_true",
        help="instead the ways to a drive, on the host with NVMe drives; neither JSON nor a page",
    )
    arguments = parser.parse_args()
    if arguments.command == "report" and arguments.hardware and (arguments.json or arguments.html):
        report.error("--hardware prints two reports, and neither JSON nor a page")
    try:
        if arguments.command == "clean":
            clean()
            return 0
        lab = prepare()
    except LabUnavailableError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; what is done so far is kept")
        return 130
    if arguments.command == "prepare":
        say(f"ready in {cache_directory()}")
        return 0
    if arguments.command == "report" and arguments.hardware:
        hardware_report.show(lab, report_options(arguments), say)
        return 0
    if arguments.command == "report":
        return compare(lab, arguments)
    if arguments.hardware:
        return open_hardware(lab, arguments)
    return open_shell(lab, arguments)


def report_options(arguments: argparse.Namespace) -> list[str]:
    """For `nvme-mdev bench report`."""
    numbers = ["--rounds", str(arguments.rounds), "--runtime", str(arguments.runtime)]
    return [*numbers, "--quick"] if arguments.quick else numbers


def compare(lab: Lab, arguments: argparse.Namespace) -> int:
    """Measure the disks of a guest, and show what came out."""
    found = measure(
        lab,
        rounds=arguments.rounds,
        runtime=arguments.runtime,
        sweeps=usual_sweeps(quick=arguments.quick),
        progress=lambda share, what: say(f"{share:4.0%} {what}"),
    )
    if arguments.html:
        arguments.html.write_text(html_page(found), encoding="utf-8")
    if arguments.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print_report(found)
    return 0


def open_shell(lab: Lab, arguments: argparse.Namespace) -> int:
    """A guest's serial console; its exit status."""
    say("exit powers the guest off; Ctrl-A X ends QEMU, Ctrl-A C is its monitor")
    command = [
        *machine(lab, arguments.kernel, arguments.memory, arguments.smp),
        *("-no-reboot", "-serial", "mon:stdio"),
        *programs_disk(lab, arguments.kernel),
        *direct_boot(lab, arguments.kernel, f"lab.shell {arguments.append}"),
    ]
    for path in arguments.socket:
        command += ["-device", json.dumps(vfio_user(path))]
    return subprocess.run([*command, *arguments.qemu], check=False).returncode


def open_hardware(lab: Lab, arguments: argparse.Namespace) -> int:
    """The serial console of the host of `test_hardware.py`, on images that go with it."""
    with (
        tempfile.TemporaryDirectory(prefix="nvme-mdev-shell-") as directory,
        hardware.timed_drive(Path(directory)) as timed,
    ):
        host = hardware.make(Path(directory), timed, persistent=True)
        for block in host.blocks:
            arguments.qemu += ["-blockdev", block]
        for device in host.devices:
            arguments.qemu += ["-device", json.dumps(device)]
        arguments.qemu += host.arguments
        arguments.append = f"{host.append} {arguments.append}"
        arguments.memory = max(arguments.memory, host.memory_mib)
        say(f"nvme-mdev is there after this:\n{hardware.setup()}")
        say(f"and {nvdimm.DISK}, for a file system with DAX, after this:\n{nvdimm.SETUP}")
        return open_shell(lab, arguments)


if __name__ == "__main__":
    sys.exit(main())
