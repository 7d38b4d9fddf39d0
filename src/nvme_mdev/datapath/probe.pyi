"""Turns of an IOThread that does not run, one after the other in the calling thread; its clock."""

from nvme_mdev.datapath.iothread import IOThread

def take_turns(iothread: IOThread, count: int) -> int:
    """Take `count` turns; how much there was to do in them, 0 when nothing.

    RuntimeError when the thread was started: its turns are its own.
    """

def stop_clock(iothread: IOThread) -> None:
    """For limits it stays as late as it is now, on this thread, but for `pass_time`."""

def pass_time(iothread: IOThread, ticks: int) -> None:
    """Let time pass for limits, in ticks of the time-stamp counter (`tsc_hz`); below 0: go back.

    RuntimeError: the clock was not stopped.
    """
