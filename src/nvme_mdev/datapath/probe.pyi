"""Turns of an IOThread that does not run, one after the other in the calling thread."""

from nvme_mdev.datapath.iothread import IOThread

def take_turns(iothread: IOThread, count: int) -> int:
    """Take `count` turns; how much there was to do in them, 0 when nothing.

    RuntimeError when the thread was started: its turns are its own.
    """
