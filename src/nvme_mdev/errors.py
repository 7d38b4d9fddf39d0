"""Errors that a user can do something about."""

from __future__ import annotations

import errno
import os

#: What to do about an error of the kernel, where one sentence fits every place it can occur.
_ADVICE = {
    errno.EACCES: "check its owner and mode, or run as a user who may use it",
    errno.EPERM: "run as a user who may do this",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the system has too many open files: close some",
    errno.ENOSPC: "make room on that file system",
    errno.EDQUOT: "the disk quota is used up: make room",
    errno.EROFS: "that file system is mounted read-only: choose another place",
    errno.ENOMEM: "use less memory, or raise the limit (ulimit -v, ulimit -l)",
}


class UserError(Exception):
    """Something the user asked for that cannot be done.

    The message is one line that says what is wrong and what to do about it; the command line
    prints it as it is and exits with status 2.
    """


def describe_os_error(error: OSError) -> str:
    """One line for an error of the kernel: the file, what happened, and what to do if known."""
    what = os.strerror(error.errno) if error.errno else str(error)
    if error.filename:
        what = f"{os.fsdecode(error.filename)}: {what}"
    advice = _ADVICE.get(error.errno or 0)
    return f"{what}: {advice}" if advice else what
