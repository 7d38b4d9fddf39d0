"""The rate of the time-stamp counter, measured against the monotonic clock."""

def tsc_hz() -> int:
    """Ticks a second. Waits until 10 ms have gone by since this module was imported."""
