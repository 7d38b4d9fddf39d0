"""The controller's shared memory, for the data path."""

from libc.stdint cimport uint32_t

from nvme_mdev.datapath.layout cimport controller_state_t


cdef class ControllerState:
    cdef controller_state_t *state
    cdef uint32_t *doorbell_page
    cdef readonly int fd
    cdef readonly int doorbell_fd
    #: For clients: another open file, since they can send back what they are given.
    cdef readonly int offered_doorbell_fd
    cdef readonly object registers
    cdef readonly object config_space
    cdef readonly object msix
    cdef readonly object doorbells
    cdef readonly object features
    cdef readonly object vector_config
    cdef readonly object scratch
    cdef readonly object changed_namespaces
    cdef readonly object error_log
    cdef readonly object feature_data
    cdef readonly object lifetime
