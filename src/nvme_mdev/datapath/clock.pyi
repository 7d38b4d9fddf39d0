"""The rate of the time-stamp counter, measured against the monotonic clock."""

def tsc_hz() -> int:
    """Ticks a second; waits until 20 ms have gone by since this module was imported."""
