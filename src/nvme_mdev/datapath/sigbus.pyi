"""Containment of SIGBUS in memory that a client shares with us."""

def contained_count() -> int:
    """How many faults were contained since the process began."""
