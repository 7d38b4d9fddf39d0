"""How fast the time-stamp counter runs."""

def tsc_hz() -> int:
    """Ticks of the time-stamp counter a second; measured at the first call, which takes 20 ms."""
