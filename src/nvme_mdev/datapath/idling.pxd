"""Idling, for an IOThread whose turn found nothing."""

from nvme_mdev.datapath.runtime cimport iothread_t


#: Nothing was to do this turn: spin, and after the poll timeout sleep.
cdef void idle(iothread_t *thread) noexcept nogil
