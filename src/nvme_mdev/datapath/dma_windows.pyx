"""DMA windows: guest memory that comes and goes under a controller's queues."""

from libc.stdint cimport uint64_t

from nvme_mdev.datapath.attached_controller cimport Part
from nvme_mdev.datapath.binding cimport bind_all, bind_changed, memory_in_use
from nvme_mdev.datapath.iothread cimport IOThread
from nvme_mdev.datapath.queues cimport signal_fd
from nvme_mdev.datapath.runtime cimport HELD_MEMORY
from nvme_mdev.datapath.uring cimport uring_buffers_t, uring_drop_buffers

from nvme_mdev.datapath.memory import release_buffers


cdef class DmaWindows(Part):
    """The windows of a controller (see dma_windows.pyi)."""

    def map(self, iova, size, fd, offset, *, readable, writable):
        self.attached.pause()
        try:
            self.attached.memory.map(iova, size, fd, offset, readable=readable, writable=writable)
            bind_changed(self.controller, iova, size)
        finally:
            self.attached.resume()
        self._after_rebind()

    def _after_rebind(self):
        """Queues may have come back to life: someone has to look at their doorbells."""
        self.attached.wake()
        if self.controller.sqs[0].size:
            signal_fd(self.attached.notify_fd)

    def try_unmap(self, iova, size):
        self.attached.pause()
        try:
            if self._in_use(iova, size):
                return None
            removed = self.attached.memory.unmap(iova, size)
            bind_changed(self.controller, iova, size)
        finally:
            self.attached.resume()
        self._drop_buffers()
        self._after_rebind()
        return removed

    def try_unmap_all(self):
        self.attached.pause()
        try:
            if self._in_use(0, 0):
                return None
            removed = self.attached.memory.clear()
            bind_all(self.controller)
        finally:
            self.attached.resume()
        self._drop_buffers()
        return removed

    def give_up_unmap(self):
        self.attached.pause()
        bind_all(self.controller)
        self.attached.resume()
        self._after_rebind()

    cdef bint _in_use(self, uint64_t iova, uint64_t size) noexcept:
        """Commands in flight use the range (size 0: all of memory). Then every queue is held, until
        the binding that follows the unmapping decides anew."""
        if not memory_in_use(self.controller, iova, size):
            return False
        self.attached.hold_all(HELD_MEMORY)
        return True

    def _drop_buffers(self):
        """Unregister memory that is gone from the threads' io_urings."""
        cdef uring_buffers_t argument
        cdef IOThread iothread
        dropped = list(self.attached.memory.dropped_buffers)
        self.attached.memory.dropped_buffers.clear()
        for first, count in dropped:
            argument.first = first
            argument.count = count
            for iothread in self.attached.iothreads:
                if iothread.thread.uring != NULL:
                    iothread.call(uring_drop_buffers, &argument)
            release_buffers(first, count)

    def clear(self):
        self.attached.memory.clear()
        self._drop_buffers()
