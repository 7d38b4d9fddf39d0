"""The controller's shared memory: creating it, adopting it, and Python's windows onto it."""

from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.buffer cimport PyBUF_WRITE
from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from nvme_mdev.datapath.layout cimport (
    ERROR_ENTRIES, HOST_QUEUES, IO_QUEUES, SLOTS, STATE_MAGIC, STATE_VERSION, controller_state_t, cq_state_t,
    error_entry_t, io_counters_t, nvme_cqe_t, nvme_sqe_t, slot_t, sq_state_t,
)

import fcntl
import os

LAYOUT_VERSION = STATE_VERSION
MAX_IO_QUEUES = IO_QUEUES
MAX_IOTHREADS = HOST_QUEUES
SLOTS_PER_QUEUE = SLOTS
ERROR_LOG_ENTRIES = ERROR_ENTRIES

DOORBELL_PAGE = 4096
#: Where the page is in its memfd: at its offset in BAR0, so that one file offset serves the region.
DOORBELL_OFFSET = 0x1000
DOORBELL_FILE = DOORBELL_OFFSET + DOORBELL_PAGE
#: <linux/fcntl.h>; a client that got the doorbell page cannot shrink it under us.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def layout():
    cdef controller_state_t *s = NULL
    return {
        "controller_state": (0, sizeof(controller_state_t)),
        "error_count": (<size_t> &s.error_count, sizeof(uint64_t)),
        "registers": (<size_t> &s.registers, sizeof(s.registers)),
        "config_space": (<size_t> &s.config_space, sizeof(s.config_space)),
        "msix": (<size_t> &s.msix, sizeof(s.msix)),
        "features": (<size_t> &s.features, sizeof(s.features)),
        "vector_config": (<size_t> &s.vector_config, sizeof(s.vector_config)),
        "scratch": (<size_t> &s.scratch, sizeof(s.scratch)),
        "changed_namespaces": (<size_t> &s.changed_namespaces, sizeof(s.changed_namespaces)),
        "feature_data": (<size_t> &s.feature_data, sizeof(s.feature_data)),
        "lifetime": (<size_t> &s.lifetime, sizeof(s.lifetime)),
        "error_log": (<size_t> &s.error_log, sizeof(s.error_log)),
        "error_log_entry": (0, sizeof(error_entry_t)),
        "bad_ranges": (<size_t> &s.bad_ranges, sizeof(s.bad_ranges)),
        "io_counters": (<size_t> &s.io_counters, sizeof(s.io_counters)),
        "path_counters": (<size_t> &s.path_counters, sizeof(s.path_counters)),
        "sq": (<size_t> &s.sq, sizeof(s.sq)),
        "sq_entry": (0, sizeof(sq_state_t)),
        "cq": (<size_t> &s.cq, sizeof(s.cq)),
        "cq_entry": (0, sizeof(cq_state_t)),
        "slots": (<size_t> &s.slots, sizeof(s.slots)),
        "slot": (0, sizeof(slot_t)),
        "sqe": (0, sizeof(nvme_sqe_t)),
        "cqe": (0, sizeof(nvme_cqe_t)),
    }


def _create(name, size):
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


cdef void *_map(int fd, size_t size, size_t offset=0) except NULL:
    """Map all of the memfd from `offset` on."""
    cdef void *address
    if os.fstat(fd).st_size != offset + size:
        raise ValueError("the shared memory has another layout's size")
    address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset)
    if address == MAP_FAILED:
        raise OSError(errno, os.strerror(errno))
    return address


cdef object _window(void *address, size_t size, str item="B"):
    view = PyMemoryView_FromMemory(<char *> address, size, PyBUF_WRITE)
    return view if item == "B" else view.cast(item)


cdef class ControllerState:
    """One controller's guest-visible state (see state.pyi)."""

    def __cinit__(self):
        self.fd = self.doorbell_fd = self.offered_doorbell_fd = -1

    def __init__(self, fd=-1, doorbell_fd=-1):
        cdef bint fresh = fd < 0
        self.fd = _create("nvme-mdev-state", sizeof(controller_state_t)) if fresh else fd
        self.doorbell_fd = _create("nvme-mdev-doorbells", DOORBELL_FILE) if fresh else doorbell_fd
        self.offered_doorbell_fd = os.open(f"/proc/self/fd/{self.doorbell_fd}", os.O_RDWR | os.O_CLOEXEC)
        self.state = <controller_state_t *> _map(self.fd, sizeof(controller_state_t))
        self.doorbell_page = <uint32_t *> _map(self.doorbell_fd, DOORBELL_PAGE, DOORBELL_OFFSET)
        if fresh:
            self.state.magic = STATE_MAGIC
            self.state.version = STATE_VERSION
            self.state.size = sizeof(controller_state_t)
        elif (self.state.magic != STATE_MAGIC or self.state.version != STATE_VERSION
                or self.state.size != sizeof(controller_state_t)):
            raise ValueError("the shared memory is of another version of nvme-mdev")
        self._open_windows()

    def _open_windows(self):
        cdef controller_state_t *state = self.state
        self.registers = _window(state.registers, sizeof(state.registers))
        self.config_space = _window(state.config_space, sizeof(state.config_space))
        self.msix = _window(state.msix, sizeof(state.msix))
        self.doorbells = _window(self.doorbell_page, DOORBELL_PAGE)
        self.features = _window(state.features, sizeof(state.features), "I")
        self.vector_config = _window(state.vector_config, sizeof(state.vector_config), "I")
        self.scratch = _window(state.scratch, sizeof(state.scratch), "I")
        self.changed_namespaces = _window(
            state.changed_namespaces, sizeof(state.changed_namespaces), "I")
        self.error_log = _window(state.error_log, sizeof(state.error_log))
        self.feature_data = _window(state.feature_data, sizeof(state.feature_data))
        self.lifetime = _window(state.lifetime, sizeof(state.lifetime), "Q")

    @property
    def error_count(self):
        return self.state.error_count

    @error_count.setter
    def error_count(self, value):
        self.state.error_count = value

    @property
    def shadow_doorbell_iova(self):
        return self.state.shadow_doorbell_iova

    @shadow_doorbell_iova.setter
    def shadow_doorbell_iova(self, value):
        self.state.shadow_doorbell_iova = value

    @property
    def event_idx_iova(self):
        return self.state.event_idx_iova

    @event_idx_iova.setter
    def event_idx_iova(self, value):
        self.state.event_idx_iova = value

    def counters(self):
        cdef io_counters_t total
        cdef io_counters_t *part
        cdef int i
        memset(&total, 0, sizeof(total))
        for i in range(HOST_QUEUES):
            part = &self.state.io_counters[i]
            total.read_commands += part.read_commands
            total.write_commands += part.write_commands
            total.read_units += part.read_units
            total.write_units += part.write_units
            total.media_errors += part.media_errors
        return {
            "read_commands": total.read_commands,
            "write_commands": total.write_commands,
            "read_units": total.read_units,
            "write_units": total.write_units,
            "media_errors": total.media_errors,
        }

    def close(self):
        """Release the windows, unmap, and close the descriptors."""
        for view in (self.registers, self.config_space, self.msix, self.doorbells, self.features,
                     self.vector_config, self.scratch, self.changed_namespaces, self.error_log,
                     self.feature_data, self.lifetime):
            if view is not None:
                view.release()
        if self.state != NULL:
            munmap(self.state, sizeof(controller_state_t))
            self.state = NULL
        if self.doorbell_page != NULL:
            munmap(self.doorbell_page, DOORBELL_PAGE)
            self.doorbell_page = NULL
        for fd in (self.fd, self.doorbell_fd, self.offered_doorbell_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.doorbell_fd = self.offered_doorbell_fd = -1
