"""The VM lab: stock QEMU, Debian's kernels, and guests that run what a test asks them to.

`prepare` builds it once and keeps it in a cache. A `Rig` starts the program under test and guests
that are attached to it, and ends them. `python -m lab` is the command line.
"""

from .daemon import Daemon, DaemonError
from .guest import Guest, GuestError
from .machines import vfio_user
from .packages import LabUnavailableError
from .prepare import Lab, cache_directory, prepare
from .rig import MIB, Rig, allocated, checksum, content

__all__ = [
    "MIB",
    "Daemon",
    "DaemonError",
    "Guest",
    "GuestError",
    "Lab",
    "LabUnavailableError",
    "Rig",
    "allocated",
    "cache_directory",
    "checksum",
    "content",
    "prepare",
    "vfio_user",
]
