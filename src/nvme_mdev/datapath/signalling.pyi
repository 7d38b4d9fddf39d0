"""Signalling a client through its eventfds, without waiting for it."""

def signal_eventfd(fd: int) -> bool:
    """Bump an eventfd of the client's. False: that would have waited for the client, or is no
    eventfd; there is no point in trying again.
    """
