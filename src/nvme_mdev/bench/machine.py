"""What a number was measured on, and how: no number means anything without it."""

from __future__ import annotations

import os
import platform
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

_CPUINFO = Path("/proc/cpuinfo")
_MODEL_KEYS = ("model name", "Model")
"""x86 and arm64 kernels call it differently; some name none."""


def describe_machine() -> dict[str, object]:
    """Kernel, architecture, processor and how many of them, for JSON."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
        "model": processor_model(),
        "cpus": os.cpu_count(),
    }


def processor_model() -> str:
    """The processor's name as the kernel gives it; empty when it gives none."""
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in _MODEL_KEYS:
            return value.strip()
    return ""


def machine_line() -> str:
    """The same for people: ``AMD EPYC, 2 CPUs, Linux 6.1``."""
    model = processor_model() or platform.machine()
    return f"{model}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}"


def describe_run(words: Sequence[str]) -> dict[str, object]:
    """Version, time and the command line whose words behind the program's name these are."""
    now = time.time()
    return {
        "nvme-mdev version": __version__,
        "timestamp": int(now),
        "time": time.strftime("%a %b %d %H:%M:%S %Y", time.localtime(now)),
        "command line": shlex.join(["nvme-mdev", *words]),
    }
