"""Identify (Base 5.1.13, NVM Command Set 4.1.5): what the controller and its namespaces can do.

All of it comes from the settings and from what the backends say of themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.controller.admin import identify_lists as lists
from nvme_mdev.controller.admin.identify_lists import check_csi
from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.controller.features import RECOMMENDED_ARBITRATION_BURST
from nvme_mdev.controller.health import CRITICAL_TEMPERATURE, WARNING_TEMPERATURE
from nvme_mdev.controller.keep_alive import GRANULARITY_MS as KEEP_ALIVE_GRANULARITY_MS
from nvme_mdev.controller.registers import VERSION
from nvme_mdev.controller.settings import MODEL_NUMBER, firmware_revision
from nvme_mdev.datapath.backends.drive import CommandLimits, CopyLimits
from nvme_mdev.datapath.range_commands import MAX_COPY, MAX_COPY_RANGE, MAX_COPY_RANGES
from nvme_mdev.datapath.state import ERROR_LOG_ENTRIES
from nvme_mdev.spec.nvme_commands import Csi
from nvme_mdev.spec.nvme_identify import (
    IDENTIFY_SIZE,
    NIDT_LENGTH,
    Cns,
    Nidt,
    NsIdDescriptor,
    ascii_field,
    u128,
)
from nvme_mdev.spec.nvme_identify_controller import (
    FRMW_SLOTS_SHIFT,
    Cmic,
    CntrlType,
    Ctratt,
    Fna,
    Frmw,
    Fuses,
    IdentifyController,
    IdentifyControllerNvm,
    Lpa,
    Nwpc,
    Oacs,
    Oaes,
    Oncs,
    Sgls,
    Vwc,
)
from nvme_mdev.spec.nvme_identify_namespace import (
    Dlfeat,
    IdentifyNamespace,
    IdentifyNamespaceIndependent,
    IdentifyNamespaceNvm,
    IndependentNsfeat,
    Nmic,
    Nsattr,
    Nsfeat,
    Nstat,
)
from nvme_mdev.spec.nvme_maintenance import DSTO_ONE_AT_A_TIME, FPI_SUPPORTED, Sanicap
from nvme_mdev.spec.nvme_registers import ADMIN_CQES, ADMIN_SQES
from nvme_mdev.spec.nvme_reservations import Rescap
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable

    from nvme_mdev.controller.admin.command import AdminCommand
    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.controller.namespaces import Namespace, Namespaces
    from nvme_mdev.datapath.backends.base import Backend

ABORT_COMMAND_LIMIT = 4
"""Abort commands at a time. Each is done at once, so no more ever wait."""
ASYNC_EVENT_REQUEST_LIMIT = 4
"""Asynchronous Event Requests outstanding at a time: one a type, and one."""

_RESUME_LATENCY_US = 1_000_000
"""RTD3R, which there has to be: an estimate."""
_SHUTDOWN_LATENCY_US = 5_000_000
"""RTD3E: how long a guest waits for a shutdown, that is, for the flush; what Linux waits anyhow."""

_IO_SQES = ADMIN_SQES << 4 | ADMIN_SQES
"""I/O queues have the entries of the admin queues, and no others: maximum and required size."""
_IO_CQES = ADMIN_CQES << 4 | ADMIN_CQES
_MIN_PAGE_SIZE = 4096
_KAS_UNIT_MS = 100
_FIRMWARE_SLOTS = 1
_LARGEST_BLOCK = 4096
_COPY_FORMATS = 1 << 0
"""CDFS: Copy descriptor format 0h; the others are for protection information, or namespaces."""
_WORD_MAX = 0xFFFF
_DWORD_MAX = 0xFFFF_FFFF


def identify(controller: Controller, command: AdminCommand) -> int:
    """Identify: return the data structure that CNS names."""
    build = _STRUCTURES.get(command.sqe.cdw10 & 0xFF)
    if build is None:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10)
    command.respond(bytes(build(controller, command)).ljust(IDENTIFY_SIZE, b"\0"))
    return 0


# --- the controller ---


def _controller(controller: Controller, _command: AdminCommand) -> IdentifyController:
    settings = controller.settings
    data = IdentifyController(
        vid=settings.vendor_id,
        ssvid=settings.vendor_id,
        sn=ascii_field(settings.serial, 20),
        mn=ascii_field(MODEL_NUMBER, 40),
        fr=ascii_field(firmware_revision(), 8),
        rab=RECOMMENDED_ARBITRATION_BURST,
        cmic=Cmic.MULTI_CTRL if controller.subsystem.sharing else 0,
        mdts=(settings.max_transfer // _MIN_PAGE_SIZE).bit_length() - 1,
        cntlid=settings.cntlid,
        ver=VERSION,
        rtd3r=_RESUME_LATENCY_US,
        rtd3e=_SHUTDOWN_LATENCY_US,
        oaes=Oaes.NSAN,
        ctratt=Ctratt.HIDS | Ctratt.RHII,
        cntrltype=CntrlType.IO,
        oacs=Oacs.DBCS if settings.shadow_doorbell else 0,
        acl=ABORT_COMMAND_LIMIT - 1,
        aerl=ASYNC_EVENT_REQUEST_LIMIT - 1,
        frmw=Frmw.FFSRO | _FIRMWARE_SLOTS << FRMW_SLOTS_SHIFT,
        lpa=Lpa.CSES | Lpa.LPEDS | Lpa.MLPS,
        elpe=ERROR_LOG_ENTRIES - 1,
        avscc=1,
        wctemp=WARNING_TEMPERATURE,
        cctemp=CRITICAL_TEMPERATURE,
        kas=KEEP_ALIVE_GRANULARITY_MS // _KAS_UNIT_MS,
        sqes=_IO_SQES,
        cqes=_IO_CQES,
        nn=settings.max_nsid,
        mnan=settings.max_namespaces,
        oncs=optional_commands(controller.namespaces) | Oncs.TSS,
        fuses=_fused(controller.namespaces),
        acwu=_compare_and_write_unit(controller),
        cdfs=_COPY_FORMATS,
        sgls=_sgls(controller.namespaces),
        vwc=Vwc.FB_ALL | (Vwc.VWCP if controller.namespaces.volatile() else 0),
        nwpc=Nwpc.NWPS | Nwpc.WPUPC,
        subnqn=settings.nqn.encode("ascii"),
    )
    if controller.self_test.offered:
        data.oacs |= Oacs.DSTS
        data.edstt = controller.self_test.extended_minutes
        data.dsto = DSTO_ONE_AT_A_TIME
    if controller.erasing.offered:
        data.oacs |= Oacs.FNVMS
        data.sanicap = Sanicap.BES | Sanicap.OWS | Sanicap.NODMMAS_NOT_MODIFIED
    if controller.erasing.offers_new_keys:
        data.sanicap |= Sanicap.CES
        data.fna = Fna.CES
    data.tnvmcap[:] = list(u128(sum(one.backend.size for one in controller.namespaces)))
    return data


def optional_commands(namespaces: Namespaces) -> Oncs:
    """ONCS: what the namespaces' backends can do.

    The field speaks for all namespaces. Its commands have to work on each; Deallocate is advice,
    which a backend that cannot follow ignores.
    """
    backends = [namespace.backend for namespace in namespaces]
    oncs = Oncs.SSFS | Oncs.RESERVS
    if all(backend.can_write_uncorrectable for backend in backends):
        oncs |= Oncs.NVMWUSV
    if all(backend.can_verify for backend in backends):
        oncs |= Oncs.NVMVFYS
    if all(backend.can_copy for backend in backends):
        oncs |= Oncs.NVMCPYS
    if all(backend.can_compare for backend in backends):
        oncs |= Oncs.NVMCMPS
    if all(backend.can_write_zeroes for backend in backends):
        oncs |= Oncs.NVMWZSV
    if not backends or any(backend.can_deallocate for backend in backends):
        oncs |= Oncs.NVMDSMSV
    return oncs


def _fused(namespaces: Namespaces) -> Fuses:
    """FUSES: Compare and Write, where there is Compare, and one IOThread that does both."""
    one_thread = all(namespace.backend.threads <= 1 for namespace in namespaces)
    compares = optional_commands(namespaces) & Oncs.NVMCMPS
    return Fuses.FCWS if one_thread and compares else Fuses(0)


def _compare_and_write_unit(controller: Controller) -> int:
    """ACWU, blocks of any size, 0's based: a fused pair of any length is atomic."""
    largest = min(controller.settings.max_transfer // _LARGEST_BLOCK, _WORD_MAX + 1)
    return largest - 1 if _fused(controller.namespaces) else 0


def _sgls(namespaces: Namespaces) -> Sgls:
    """SGLS: what all namespaces take. A list may describe more than the command: we cut it."""
    found = [Sgls(namespace.backend.sgls) for namespace in namespaces]
    if any(not sgls for sgls in found):
        return Sgls(0)
    alignment = Sgls.BYTE_ALIGNED
    if any(sgls & Sgls.ALIGNMENT == Sgls.DWORD_ALIGNED for sgls in found):
        alignment = Sgls.DWORD_ALIGNED
    buckets = Sgls.BIT_BUCKET if all(sgls & Sgls.BIT_BUCKET for sgls in found) else Sgls(0)
    return alignment | buckets | Sgls.LONGER


def _controller_nvm(controller: Controller, command: AdminCommand) -> IdentifyControllerNvm:
    """The limits of the drives below: what we do by ourselves takes all that fits NLB."""
    check_csi(command)
    limits = CommandLimits.least(one.backend.command_limits for one in controller.namespaces)
    return IdentifyControllerNvm(
        vsl=limits.verify,
        wzsl=limits.write_zeroes,
        wusl=limits.write_uncorrectable,
        wzdsl=limits.write_zeroes_deallocated,
        dmrl=limits.ranges,
        dmrsl=limits.range_blocks,
        dmsl=limits.blocks,
    )


# --- namespaces ---


def _namespace(controller: Controller, command: AdminCommand) -> IdentifyNamespace:
    controller.namespaces.check_nsid(command.sqe.nsid)
    namespace = controller.namespaces.get(command.sqe.nsid)
    if namespace is None:
        return IdentifyNamespace()
    data = _active_namespace(controller, namespace)
    data.nmic = _sharing(controller)
    return data


def _sharing(controller: Controller) -> Nmic | int:
    """NMIC: with several controllers each namespace can be attached to all of them."""
    return Nmic.SHRNS if controller.subsystem.sharing else 0


def _attributes(controller: Controller, namespace: Namespace) -> int:
    return Nsattr.CWP if controller.write_protection.protects(namespace.nsid) else 0


def _reservations(namespace: Namespace) -> Rescap:
    """RESCAP: every type; kept through a loss of power where the user gives them a place."""
    return Rescap(0xFF if namespace.backend.ptpl_file is not None else 0xFF & ~Rescap.PTPLS)


def _active_namespace(controller: Controller, namespace: Namespace) -> IdentifyNamespace:
    backend = namespace.backend
    data = IdentifyNamespace(
        nsze=namespace.blocks,
        ncap=namespace.blocks,
        nuse=namespace.blocks,
        dlfeat=_deallocation(backend),
        noiob=min(backend.optimal_io_boundary, _WORD_MAX),
        nsattr=_attributes(controller, namespace),
        rescap=_reservations(namespace),
    )
    _add_copy_limits(data, backend)
    data.nvmcap[:] = list(u128(backend.size))
    data.nguid[:] = list(namespace.nguid)
    sizes = controller.erasing.block_sizes(namespace)
    data.nlbaf = len(sizes) - 1
    data.flbas = sizes.index(backend.block_size)
    for index, size in enumerate(sizes):
        data.lbaf[index].lbads = size.bit_length() - 1
    if controller.erasing.offered:
        data.fpi = FPI_SUPPORTED | controller.erasing.remains(namespace.nsid)
    _add_preferences(data, backend)
    _add_atomicity(data, backend)
    return data


def _add_copy_limits(data: IdentifyNamespace, backend: Backend) -> None:
    """Our own, as far as the drive below goes with them."""
    limits = backend.copy_limits or CopyLimits(_WORD_MAX, _DWORD_MAX, MAX_COPY_RANGES)
    data.mssrl = min(MAX_COPY_RANGE // backend.block_size, limits.range_blocks, _WORD_MAX)
    data.mcl = min(MAX_COPY // backend.block_size, limits.blocks)
    data.msrc = min(MAX_COPY_RANGES, limits.ranges) - 1


def _add_atomicity(data: IdentifyNamespace, backend: Backend) -> None:
    """What the drive below writes whole or not at all; else it is a block (AWUN)."""
    atomicity = backend.atomicity
    if atomicity is None:
        return
    data.nsfeat |= Nsfeat.NSABP
    data.nawun, data.nawupf = atomicity.normal, atomicity.power_fail
    data.nabsn, data.nabspf = atomicity.boundary, atomicity.boundary_power_fail
    data.nabo = atomicity.offset


def _deallocation(backend: Backend) -> int:
    """DLFEAT: what a deallocated block reads as, and whether Write Zeroes may deallocate."""
    return (Dlfeat.READS_ZEROES if backend.deallocate_zeroes else 0) | (
        Dlfeat.DEALLOCATE_WRITE_ZEROES if backend.can_deallocate else 0
    )


def _add_preferences(data: IdentifyNamespace, backend: Backend) -> None:
    """The granularities, 0's based, when the backend has a preference."""
    write = min(backend.preferred_write_granularity, _WORD_MAX + 1)
    deallocate = min(backend.preferred_deallocate_granularity, _WORD_MAX + 1)
    if not write and not deallocate:
        return
    data.nsfeat |= Nsfeat.OPTPERF
    data.npwg = data.npwa = data.nows = max(write, 1) - 1
    data.npdg = data.npda = max(deallocate, 1) - 1


def _namespace_nvm(controller: Controller, command: AdminCommand) -> IdentifyNamespaceNvm:
    """No protection information, so nothing to say; it is asked for all the same."""
    controller.namespaces.check_nsid(command.sqe.nsid)
    check_csi(command)
    return IdentifyNamespaceNvm()


def _namespace_independent(
    controller: Controller, command: AdminCommand
) -> IdentifyNamespaceIndependent:
    controller.namespaces.check_nsid(command.sqe.nsid)
    namespace = controller.namespaces.get(command.sqe.nsid)
    if namespace is None:
        return IdentifyNamespaceIndependent()
    backend = namespace.backend
    return IdentifyNamespaceIndependent(
        nsfeat=0 if backend.volatile_cache else IndependentNsfeat.VWCNP,
        nmic=_sharing(controller),
        nsattr=_attributes(controller, namespace),
        rescap=_reservations(namespace),
        fpi=FPI_SUPPORTED | controller.erasing.remains(namespace.nsid)
        if controller.erasing.offered
        else 0,
        nstat=Nstat.NRDY,
    )


def _namespace_descriptors(controller: Controller, command: AdminCommand) -> bytes:
    controller.namespaces.check_nsid(command.sqe.nsid)
    namespace = controller.namespaces.get(command.sqe.nsid)
    if namespace is None:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.NSID)
    identifiers = {
        Nidt.NGUID: namespace.nguid,
        Nidt.UUID: namespace.uuid.bytes,
        Nidt.CSI: bytes([Csi.NVM]),
    }
    return b"".join(
        bytes(NsIdDescriptor(nidt=kind, nidl=NIDT_LENGTH[kind])) + value
        for kind, value in identifiers.items()
    )


_STRUCTURES: dict[int, Callable[[Controller, AdminCommand], bytes | ctypes.Structure]] = {
    Cns.NAMESPACE: _namespace,
    Cns.CONTROLLER: _controller,
    Cns.ACTIVE_NSID_LIST: lists.active_nsids,
    Cns.NS_ID_DESCRIPTORS: _namespace_descriptors,
    Cns.IOCS_NAMESPACE: _namespace_nvm,
    Cns.IOCS_CONTROLLER: _controller_nvm,
    Cns.IOCS_ACTIVE_NSID_LIST: lists.active_nsids_of_csi,
    Cns.IOCS_INDEPENDENT_NAMESPACE: _namespace_independent,
    Cns.ALLOCATED_NSID_LIST: lists.active_nsids,
    Cns.ALLOCATED_NAMESPACE: _namespace,
    Cns.NS_CONTROLLER_LIST: lists.attached_controllers,
    Cns.CONTROLLER_LIST: lists.controllers,
    Cns.PRIMARY_CONTROLLER_CAPS: lists.primary_capabilities,
    Cns.SECONDARY_CONTROLLER_LIST: lists.secondary_controllers,
    Cns.IOCS_ALLOCATED_NSID_LIST: lists.active_nsids_of_csi,
    Cns.IOCS_ALLOCATED_NAMESPACE: _namespace_nvm,
    Cns.IO_COMMAND_SETS: lists.io_command_sets,
}
"""CNS to the function that builds its data structure; what is not here is an invalid field."""
