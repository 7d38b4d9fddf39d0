"""Serving a guest whose memory only messages reach (VFIO_USER_DMA_READ and DMA_WRITE).

The data path works on memory of our own, the *shadow*, at the addresses that the guest uses. The
relay stands between: it pulls commands, lists and data into the shadow before a queue sees the
doorbell, and pushes data and completions out of it before the guest sees the interrupt.
"""
