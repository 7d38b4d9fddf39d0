"""Identify's lists: of namespaces, of controllers, of command sets (Base 5.1.13.2).

Every namespace that is allocated is attached: there is no Namespace Management. The subsystem has
one I/O command set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.spec.nvme_commands import MAX_NSID, NSID_ALL, Csi
from nvme_mdev.spec.nvme_identify import (
    NSID_LIST_ENTRIES,
    ControllerList,
    IoCommandSetVectors,
    NsidList,
)
from nvme_mdev.spec.nvme_status import GenericStatus
from nvme_mdev.spec.nvme_virtualization import (
    PrimaryControllerCapabilities,
    SecondaryControllerList,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvme_mdev.controller.admin.command import AdminCommand
    from nvme_mdev.controller.controller import Controller

_THIS_CONTROLLER = 0xFFFF
"""CNTID of the controller that executes the command (CNS 1Ch)."""


def check_csi(command: AdminCommand) -> None:
    """NvmeError for a command set that is not the NVM command set."""
    if command.sqe.cdw11 >> 24 != Csi.NVM:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CSI)


# --- namespaces ---


def active_nsids(controller: Controller, command: AdminCommand) -> NsidList:
    """CNS 02h, 10h: the active NSIDs, which are the allocated ones, above the one given."""
    above = command.sqe.nsid
    if above >= MAX_NSID:
        raise NvmeError(GenericStatus.INVALID_NAMESPACE_OR_FORMAT, Field.NSID)
    data = NsidList()
    nsids = [namespace.nsid for namespace in controller.namespaces if namespace.nsid > above]
    for index, nsid in enumerate(nsids[:NSID_LIST_ENTRIES]):
        data.nsid[index] = nsid
    return data


def active_nsids_of_csi(controller: Controller, command: AdminCommand) -> NsidList:
    """CNS 07h, 1Ah: those of a command set."""
    check_csi(command)
    return active_nsids(controller, command)


# --- controllers ---


def attached_controllers(controller: Controller, command: AdminCommand) -> ControllerList:
    """CNS 12h: the controllers that a namespace is attached to, from CNTID on."""
    if command.sqe.nsid == NSID_ALL:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.NSID)
    controller.namespaces.check_nsid(command.sqe.nsid)
    return _list(controller.subsystem.attached(command.sqe.nsid), command)


def controllers(controller: Controller, command: AdminCommand) -> ControllerList:
    """CNS 13h: the controllers of the subsystem, from CNTID on."""
    return _list(controller.subsystem, command)


def _list(found: Iterable[Controller], command: AdminCommand) -> ControllerList:
    data = ControllerList()
    for one in found:
        if _cntid(command) <= one.settings.cntlid and data.numids < len(data.cntlid):
            data.cntlid[data.numids] = one.settings.cntlid
            data.numids += 1
    return data


def primary_capabilities(
    controller: Controller, command: AdminCommand
) -> PrimaryControllerCapabilities:
    """CNS 14h: the first primary controller from CNTID on; it has no flexible resources."""
    for one in controller.subsystem:
        if one.settings.cntlid >= _cntid(command):
            return PrimaryControllerCapabilities(cntlid=one.settings.cntlid)
    raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10_HIGH)


def secondary_controllers(
    _controller: Controller, _command: AdminCommand
) -> SecondaryControllerList:
    """CNS 15h: there are none."""
    return SecondaryControllerList()


def _cntid(command: AdminCommand) -> int:
    return command.sqe.cdw10 >> 16


# --- command sets ---


def io_command_sets(controller: Controller, command: AdminCommand) -> IoCommandSetVectors:
    """CNS 1Ch: one combination, which is the NVM command set alone."""
    known = {one.settings.cntlid for one in controller.subsystem} | {_THIS_CONTROLLER}
    if _cntid(command) not in known:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10_HIGH)
    data = IoCommandSetVectors()
    data.vector[0] = 1 << Csi.NVM
    return data
