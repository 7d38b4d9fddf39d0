"""I/O commands that the control plane executes, as it sees them: those of `deferred.pyx`."""

from libc.stdint cimport uint8_t, uint32_t

from nvme_mdev.datapath.atomics cimport exchange32, store_release32
from nvme_mdev.datapath.attached_controller cimport Part
from nvme_mdev.datapath.completing cimport complete_deferred
from nvme_mdev.datapath.deferred cimport answer_deferred, find_deferred, settle_deferred, take_deferred
from nvme_mdev.datapath.layout cimport QUEUES, STAGE_DECIDED, STAGE_STATUS_SHIFT
from nvme_mdev.datapath.queues cimport SQE_SIZE
from nvme_mdev.datapath.runtime cimport DEFERRED_DATA, request_t

from nvme_mdev.datapath.statistics import DeferredCommand


cdef class DeferredCommands(Part):
    """A controller's deferred commands (see deferred_commands.pyi)."""

    def take(self):
        cdef request_t *request
        cdef uint32_t qid
        taken = []
        if not exchange32(&self.controller.deferred, 0):
            return taken
        self.attached.pause()
        for qid in range(1, QUEUES):
            if self.controller.sqs[qid].size and self.controller.sqs[qid].inflight:
                request = take_deferred(&self.controller.sqs[qid])
                while request != NULL:
                    taken.append(DeferredCommand(
                        qid, request - request.sq.requests, request.slot.sequence,
                        (<const char *> &request.slot.sqe)[:SQE_SIZE],
                        (<const char *> request.compound.brought)[:DEFERRED_DATA]))
                    request = take_deferred(&self.controller.sqs[qid])
        self.attached.resume()
        return taken

    cdef request_t *_request(self, command) except NULL:
        cdef request_t *request = NULL
        if self.attached.has_sq(command.qid):
            request = find_deferred(
                &self.controller.sqs[<uint32_t> command.qid], command.slot, command.sequence)
        if request == NULL:
            raise KeyError(command)
        return request

    def decided(self, command):
        cdef request_t *request = self._request(command)
        cdef uint32_t stage = request.slot.stage
        return stage >> STAGE_STATUS_SHIFT if stage & STAGE_DECIDED else None

    def decide(self, command, number):
        cdef request_t *request = self._request(command)
        store_release32(&request.slot.stage,
                        STAGE_DECIDED | <uint32_t> (number & 0xffff) << STAGE_STATUS_SHIFT)

    def settle(self, command, status, location=0xffff):
        cdef request_t *request = self._request(command)
        request.error_location = location
        settle_deferred(request, status)

    def complete(self, command, data=b""):
        cdef request_t *request = self._request(command)
        cdef const uint8_t[:] view = data or b"\0"
        cdef uint32_t size = len(data)
        self.attached.pause()
        answer_deferred(request, &view[0], size)
        complete_deferred(request.sq.thread, request)
        self.attached.resume()
