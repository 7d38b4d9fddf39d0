"""Identify (Base 5.1.13; NVM 4.1.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.conformance import needs
from nvme_mdev.conformance.check import CheckFailed, Group, NotApplicable
from nvme_mdev.conformance.expect import equal, refused, require, succeeds
from nvme_mdev.host import commands
from nvme_mdev.host.memory import prps_for
from nvme_mdev.spec.nvme_commands import MAX_NSID, NSID_ALL
from nvme_mdev.spec.nvme_identify import (
    IDENTIFY_SIZE,
    NIDT_LENGTH,
    Cns,
    ControllerList,
    IoCommandSetVectors,
    Nidt,
    NsidList,
)
from nvme_mdev.spec.nvme_identify_controller import (
    Cmic,
    CntrlType,
    Ctratt,
    IdentifyController,
    Oacs,
    Vwc,
)
from nvme_mdev.spec.nvme_identify_namespace import (
    IdentifyNamespace,
    IdentifyNamespaceIndependent,
    Nmic,
    Nstat,
)
from nvme_mdev.spec.nvme_registers import CapBit, Register
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus

if TYPE_CHECKING:
    from nvme_mdev.conformance.subject import Subject

GROUP = Group("identify")

_CSI_ZNS = 2
_THIS_CONTROLLER = 0xFFFF
"""CNTID that stands for the controller that executes the command."""


def _data(subject: Subject, cns: int, nsid: int = 0, *, cntid: int = 0, csi: int = 0) -> bytes:
    sqe = commands.identify(cns, nsid, cntid=cntid, csi=csi)
    return succeeds(subject.host.admin_queue, sqe, receive=IDENTIFY_SIZE).data


def _optional(subject: Subject, cns: int, nsid: int = 0, *, cntid: int = 0, csi: int = 0) -> bytes:
    """The data structure, NotApplicable when this CNS is not supported."""
    sqe = commands.identify(cns, nsid, cntid=cntid, csi=csi)
    reply = subject.host.admin(sqe, receive=IDENTIFY_SIZE, check=False)
    if reply.completion.status.code is GenericStatus.INVALID_FIELD:
        raise NotApplicable(f"CNS {cns:02X}h is not supported")
    require(reply.completion.ok, f"CNS {cns:02X}h: {reply.completion.status}")
    return reply.data


def _nsids(data: bytes) -> list[int]:
    """A namespace list, checked: ascending, zeroes only at its end."""
    entries = list(NsidList.from_buffer_copy(data).nsid)
    used = [nsid for nsid in entries if nsid]
    require(entries[: len(used)] == used, "a zero within the list")
    require(used == sorted(set(used)), "not in ascending order")
    return used


# -- the controller --------------------------------------------------------------------------


@GROUP.check("Base 5.1.13.2.1")
def strings_are_ascii_padded_with_blanks(subject: Subject) -> None:
    """SN, MN and FR are printable ASCII, left-justified and padded with blanks."""
    data = _data(subject, Cns.CONTROLLER)
    for name, field in (("SN", data[4:24]), ("MN", data[24:64]), ("FR", data[64:72])):
        require(all(0x20 <= byte < 0x7F for byte in field), f"{name} is {field!r}")
        require(not field.startswith(b" "), f"{name} is {field!r}")


@GROUP.check("Base 5.1.13.2.1")
def ver_is_vs(subject: Subject) -> None:
    """VER is the value of the VS register."""
    equal(subject.controller.ver, subject.register(Register.VS), "VER")


@GROUP.check("Base 5.1.13.2.1", needs=needs.version(1, 4))
def the_controller_type_is_reported(subject: Subject) -> None:
    """CNTRLTYPE says that this is an I/O controller."""
    equal(subject.controller.cntrltype, CntrlType.IO, "CNTRLTYPE")


@GROUP.check("Base 5.1.13.2.1")
def entry_sizes_are_those_of_the_nvm_command_set(subject: Subject) -> None:
    """SQES requires 64 bytes and CQES 16, and both allow them."""
    controller = subject.controller
    equal(controller.sqes & 0xF, 6, "required SQES")
    equal(controller.cqes & 0xF, 4, "required CQES")
    require(controller.sqes >> 4 >= 6 and controller.cqes >> 4 >= 4, "maximum below required")


@GROUP.check("Base 5.1.13.2.1")
def there_can_be_namespaces(subject: Subject) -> None:
    """NN is not 0, and MNAN is 0 or not above NN."""
    controller = subject.controller
    require(controller.nn, "NN is 0")
    require(controller.mnan <= controller.nn, f"MNAN is {controller.mnan}, NN {controller.nn}")


@GROUP.check("Base 5.1.13.2.1", "Base 4.7", needs=needs.version(1, 2))
def the_subsystem_has_a_name(subject: Subject) -> None:
    """SUBNQN is an NVMe Qualified Name, NUL-terminated."""
    data = _data(subject, Cns.CONTROLLER)[768:1024]
    require(data.startswith(b"nqn."), f"SUBNQN is {data[:32]!r}")
    require(b"\0" in data and not data[data.index(b"\0") :].strip(b"\0"), "no NUL after it")


@GROUP.check("Base 5.1.13.2.1", needs=needs.version(1, 4))
def flush_of_all_namespaces_is_decided(subject: Subject) -> None:
    """VWC.FB says what Flush with NSID FFFFFFFFh does."""
    require(subject.controller.vwc & Vwc.FB_ALL in {Vwc.FB_ALL, Vwc.FB_NOT_ALL}, "FB is 00b or 01b")


@GROUP.check("Base 5.1.13.2.1", needs=needs.version(1, 2))
def temperature_thresholds_are_reported(subject: Subject) -> None:
    """WCTEMP and CCTEMP are not 0, and the critical one is not below the warning one."""
    controller = subject.controller
    require(controller.wctemp and controller.cctemp, "WCTEMP or CCTEMP is 0")
    require(controller.wctemp <= controller.cctemp, "WCTEMP is above CCTEMP")


@GROUP.check("Base 5.1.13.2.1")
def reserved_fields_of_the_controller_are_zero(subject: Subject) -> None:
    """Reserved fields of Identify Controller are 0."""
    controller = IdentifyController.from_buffer_copy(_data(subject, Cns.CONTROLLER))
    for name, _ in IdentifyController._fields_:
        if name.startswith("reserved"):
            field = getattr(controller, name)
            value = bytes(field) if hasattr(field, "__len__") else bytes([field])
            require(not any(value), f"the reserved bytes {name.removeprefix('reserved')}")


@GROUP.check("Base 5.1.13.2.1")
def power_states_are_described(subject: Subject) -> None:
    """Power state 0 is operational, and no state above NPSS is described."""
    controller = subject.controller
    require(not controller.psd[0].flags & 2, "power state 0 is not operational")
    for number in range(controller.npss + 1, 32):
        require(not any(bytes(controller.psd[number])), f"power state {number} is described")


@GROUP.check("Base 5.1.13.2.1")
def data_at_an_offset_of_a_page(subject: Subject) -> None:
    """The data structure is returned to a buffer that begins within a page."""
    memory = subject.host.memory
    for offset in (4, 2048, 4092):
        buffer = memory.allocate(2 * 4096)
        prps = prps_for(memory, buffer.iova + offset, IDENTIFY_SIZE)
        sqe = commands.identify(Cns.CONTROLLER)
        sqe.prp1, sqe.prp2 = prps.prp1, prps.prp2
        succeeds(subject.host.admin_queue, sqe)
        equal(buffer.read(offset, IDENTIFY_SIZE), _data(subject, Cns.CONTROLLER), "the data")
        equal(buffer.read(0, offset), bytes(offset), "what lies before the buffer")


@GROUP.check("Base 5.1.13.1")
def an_unknown_structure_is_refused(subject: Subject) -> None:
    """A CNS value that is reserved is Invalid Field in Command."""
    for cns in (0x0B, 0x40, 0x80, 0xFF):
        sqe = commands.identify(cns, subject.nsid)
        refused(subject.host.admin_queue, sqe, GenericStatus.INVALID_FIELD, receive=IDENTIFY_SIZE)


# -- namespaces ------------------------------------------------------------------------------


@GROUP.check("NVM 4.1.5.1")
def namespace_sizes_make_sense(subject: Subject) -> None:
    """NSZE, NCAP and NUSE are in this order, and the namespace is not empty."""
    identify = subject.namespace.identify
    require(identify.nsze >= identify.ncap >= identify.nuse, "NSZE >= NCAP >= NUSE does not hold")
    require(identify.nsze, "NSZE is 0")


@GROUP.check("NVM 4.1.5.1")
def the_lba_format_is_one_of_the_list(subject: Subject) -> None:
    """FLBAS names a format of the list, whose blocks have at least 512 bytes."""
    identify = subject.namespace.identify
    index = identify.format_index
    require(index <= identify.nlbaf, f"format {index} of {identify.nlbaf + 1}")
    require(identify.lbaf[index].lbads >= 9, f"LBADS is {identify.lbaf[index].lbads}")


@GROUP.check("Base 4.5.1", "NVM 4.1.5.1", needs=needs.version(1, 3))
def a_namespace_has_an_identifier(subject: Subject) -> None:
    """A namespace has at least one of EUI64, NGUID and UUID, the same in both structures."""
    identify = subject.namespace.identify
    descriptors = subject.host.namespace_descriptors(subject.nsid)
    for kind, field in ((Nidt.NGUID, identify.nguid), (Nidt.EUI64, identify.eui64)):
        if any(field):
            equal(descriptors.get(kind), bytes(field), kind.name)
    require(set(descriptors) & {Nidt.EUI64, Nidt.NGUID, Nidt.UUID}, "no identifier")


@GROUP.check("Base 5.1.13.2.3", needs=needs.version(1, 3))
def descriptors_have_their_lengths(subject: Subject) -> None:
    """Namespace Identification Descriptors have known types and the lengths of these."""
    descriptors = subject.host.namespace_descriptors(subject.nsid)
    for kind, value in descriptors.items():
        require(kind in tuple(Nidt), f"type {kind}")
        equal(len(value), NIDT_LENGTH[Nidt(kind)], f"length of {Nidt(kind).name}")


@GROUP.check("Base 3.2.1.2")
def an_invalid_nsid_is_refused(subject: Subject) -> None:
    """Identify Namespace with NSID 0 or above NN is Invalid Namespace or Format."""
    for nsid in (0, subject.invalid_nsid(), NSID_ALL - 1):
        refused(
            subject.host.admin_queue,
            commands.identify(Cns.NAMESPACE, nsid),
            GenericStatus.INVALID_NAMESPACE_OR_FORMAT,
            receive=IDENTIFY_SIZE,
        )


@GROUP.check("NVM 4.1.5.1")
def all_namespaces_are_described_only_with_namespace_management(subject: Subject) -> None:
    """Identify Namespace with NSID FFFFFFFFh is refused without Namespace Management."""
    if subject.controller.oacs & Oacs.NMS:
        raise NotApplicable("there is Namespace Management")
    refused(
        subject.host.admin_queue,
        commands.identify(Cns.NAMESPACE, NSID_ALL),
        GenericStatus.INVALID_NAMESPACE_OR_FORMAT,
        receive=IDENTIFY_SIZE,
    )


@GROUP.check("Base 5.1.13.2.2", "NVM 4.1.5.1")
def an_inactive_namespace_is_all_zero(subject: Subject) -> None:
    """Identify Namespace of an inactive NSID returns zeroes."""
    require(not any(_data(subject, Cns.NAMESPACE, subject.inactive_nsid())), "not all zero")


@GROUP.check("Base 5.1.13.2.3")
def an_inactive_namespace_has_no_descriptors(subject: Subject) -> None:
    """Namespace Identification Descriptors of an inactive NSID are refused."""
    sqe = commands.identify(Cns.NS_ID_DESCRIPTORS, subject.inactive_nsid())
    codes = GenericStatus.INVALID_FIELD, GenericStatus.INVALID_NAMESPACE_OR_FORMAT
    refused(subject.host.admin_queue, sqe, *codes, receive=IDENTIFY_SIZE)


@GROUP.check("Base 5.1.13.2.2", "Base 4.4.2")
def the_active_list_is_ascending(subject: Subject) -> None:
    """The Active Namespace ID list is ascending and has the active namespaces above the NSID."""
    active = _nsids(_data(subject, Cns.ACTIVE_NSID_LIST, 0))
    require(subject.nsid in active, "the namespace is not in the list")
    for nsid in active[:4]:
        require(any(_data(subject, Cns.NAMESPACE, nsid)), f"namespace {nsid} is all zero")
        # Above the highest NSID that there can be, no list can be asked for.
        if nsid < MAX_NSID:
            found = _nsids(_data(subject, Cns.ACTIVE_NSID_LIST, nsid))
            equal(found, [other for other in active if other > nsid], f"list above {nsid}")


@GROUP.check("Base 5.1.13.2.2")
def the_active_list_has_a_highest_start(subject: Subject) -> None:
    """An active list above FFFFFFFEh or FFFFFFFFh is Invalid Namespace or Format."""
    for nsid in (NSID_ALL - 1, NSID_ALL):
        refused(
            subject.host.admin_queue,
            commands.identify(Cns.ACTIVE_NSID_LIST, nsid),
            GenericStatus.INVALID_NAMESPACE_OR_FORMAT,
            receive=IDENTIFY_SIZE,
        )


# -- I/O command sets ------------------------------------------------------------------------


@GROUP.check("Base 5.1.13.2.4", "NVM 4.1.5.2", needs=needs.version(2, 0))
def the_nvm_namespace_structure_is_there(subject: Subject) -> None:
    """CNS 05h, CSI 00h succeeds for an active namespace."""
    _data(subject, Cns.IOCS_NAMESPACE, subject.nsid)


@GROUP.check("Base 5.1.13.2.5", "NVM 4.1.5.3", needs=needs.version(2, 0))
def the_nvm_controller_structure_is_there(subject: Subject) -> None:
    """CNS 06h, CSI 00h succeeds."""
    _data(subject, Cns.IOCS_CONTROLLER)


@GROUP.check("Base 5.1.13.2.6", needs=needs.version(2, 0))
def the_active_list_of_the_command_set_is_there(subject: Subject) -> None:
    """CNS 07h, CSI 00h lists the namespace."""
    require(subject.nsid in _nsids(_data(subject, Cns.IOCS_ACTIVE_NSID_LIST)), "it does not")


@GROUP.check("Base 5.1.13.2.8", needs=needs.version(2, 0))
def the_independent_structure_agrees(subject: Subject) -> None:
    """CNS 08h says that the namespace is ready, and has the attributes of CNS 00h."""
    data = _data(subject, Cns.IOCS_INDEPENDENT_NAMESPACE, subject.nsid)
    independent = IdentifyNamespaceIndependent.from_buffer_copy(data)
    identify = subject.namespace.identify
    require(independent.nstat & Nstat.NRDY, "NSTAT.NRDY is 0")
    for name in ("nmic", "rescap", "fpi", "anagrpid", "nsattr", "nvmsetid", "endgid"):
        equal(getattr(independent, name), getattr(identify, name), name.upper())


@GROUP.check("Base 5.1.13.1", needs=needs.version(2, 0))
def another_command_set_is_refused(subject: Subject) -> None:
    """A CSI that the controller does not have is Invalid Field in Command."""
    if subject.host.cap.bits & CapBit.CSS_IOCSS:
        raise NotApplicable("several I/O command sets can be selected")
    codes = GenericStatus.INVALID_FIELD, CommandStatus.IOCS_NOT_SUPPORTED
    for cns, nsid in (
        (Cns.IOCS_NAMESPACE, subject.nsid),
        (Cns.IOCS_CONTROLLER, 0),
        (Cns.IOCS_ACTIVE_NSID_LIST, 0),
    ):
        sqe = commands.identify(cns, nsid, csi=_CSI_ZNS)
        refused(subject.host.admin_queue, sqe, *codes, receive=IDENTIFY_SIZE)


@GROUP.check("Base 5.1.13.2.18", needs=needs.cap(CapBit.CSS_IOCSS))
def the_command_set_combinations_are_there(subject: Subject) -> None:
    """CNS 1Ch has at least one combination, which includes the NVM command set."""
    data = IoCommandSetVectors.from_buffer_copy(
        _data(subject, Cns.IO_COMMAND_SETS, cntid=_THIS_CONTROLLER)
    )
    require(any(vector & 1 for vector in data.vector), "no combination has the NVM command set")


# -- allocated namespaces, controllers -------------------------------------------------------


@GROUP.check("Base 5.1.13.2.9")
def the_allocated_list_has_the_active_namespaces(subject: Subject) -> None:
    """CNS 10h lists at least every active namespace."""
    allocated = _nsids(_optional(subject, Cns.ALLOCATED_NSID_LIST))
    active = set(subject.host.active_namespaces())
    require(active <= set(allocated), "an active namespace is not allocated")


@GROUP.check("Base 5.1.13.2.10")
def an_allocated_namespace_is_described(subject: Subject) -> None:
    """CNS 11h of an active namespace is its Identify Namespace."""
    data = _optional(subject, Cns.ALLOCATED_NAMESPACE, subject.nsid)
    found = IdentifyNamespace.from_buffer_copy(data)
    equal(found.nsze, subject.namespace.identify.nsze, "NSZE")


def _controllers(subject: Subject, cns: int, nsid: int = 0, cntid: int = 0) -> list[int]:
    data = ControllerList.from_buffer_copy(_optional(subject, cns, nsid, cntid=cntid))
    found = list(data.cntlid[: data.numids])
    require(found == sorted(set(found)), "not in ascending order")
    require(not any(data.cntlid[data.numids :]), "identifiers beyond NUMIDS")
    return found


@GROUP.check("Base 5.1.13.2.11", "Base 4.4.1")
def the_controllers_of_a_namespace(subject: Subject) -> None:
    """CNS 12h lists this controller for an active namespace."""
    found = _controllers(subject, Cns.NS_CONTROLLER_LIST, subject.nsid)
    require(subject.controller.cntlid in found, f"{found} lacks {subject.controller.cntlid}")


@GROUP.check("Base 5.1.13.2.12", "Base 4.4.1")
def the_controllers_of_the_subsystem(subject: Subject) -> None:
    """CNS 13h lists this controller, and only identifiers from CNTID on."""
    mine = subject.controller.cntlid
    require(mine in _controllers(subject, Cns.CONTROLLER_LIST), "it does not")
    above = _controllers(subject, Cns.CONTROLLER_LIST, cntid=mine + 1)
    require(all(one > mine for one in above), f"{above} above {mine}")


@GROUP.check("Base 5.1.13.2.1", "NVM 4.1.5.1")
def a_shared_namespace_is_in_a_shared_subsystem(subject: Subject) -> None:
    """NMIC.SHRNS is set only where CMIC says that there can be several controllers."""
    if not subject.namespace.identify.nmic & Nmic.SHRNS:
        raise NotApplicable("the namespace is private")
    require(subject.controller.cmic & Cmic.MULTI_CTRL, "CMIC.MCTRS is 0")


@GROUP.check("Base 5.1.13.2.13")
def the_primary_controller_structure_is_there(subject: Subject) -> None:
    """CNS 14h is there with Virtualization Management."""
    if not subject.controller.oacs & Oacs.VMS:
        raise NotApplicable("OACS.VMS is 0")
    _data(subject, Cns.PRIMARY_CONTROLLER_CAPS)


@GROUP.check("Base 5.1.13.2.15")
def the_granularity_list_is_there(subject: Subject) -> None:
    """CNS 16h is there with CTRATT.NG."""
    if not subject.controller.ctratt & Ctratt.NG:
        raise NotApplicable("CTRATT.NG is 0")
    _data(subject, Cns.NS_GRANULARITY_LIST)


@GROUP.check("Base 5.1.13.2.16")
def the_uuid_list_is_there(subject: Subject) -> None:
    """CNS 17h is there with CTRATT.ULIST."""
    if not subject.controller.ctratt & Ctratt.ULIST:
        raise NotApplicable("CTRATT.ULIST is 0")
    _data(subject, Cns.UUID_LIST)


@GROUP.check("Base 4.3.1")
def data_out_of_memory_hurts_nobody(subject: Subject) -> None:
    """A data pointer to where there is no host memory fails, and the controller goes on."""
    sqe = commands.identify(Cns.CONTROLLER)
    sqe.prp1 = 0x7FFF_FFFF_F000
    completion = subject.host.admin(sqe, check=False).completion
    if completion.ok:
        raise CheckFailed("it succeeded")
    _data(subject, Cns.CONTROLLER)
