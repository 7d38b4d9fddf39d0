"""Containment of SIGBUS in memory that a client shares with us."""

def install() -> None:
    """Install the handler; importing this module did it, again after another took the signal."""

def contained_count() -> int:
    """How many faults were contained since the process began."""
