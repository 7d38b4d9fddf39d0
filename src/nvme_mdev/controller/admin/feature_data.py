"""Set and Get Features whose values are data: Timestamp, Host Behavior Support, Host Identifier."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.controller.feature_data import HOST_IDENTIFIER_SIZE
from nvme_mdev.spec.nvme_features import (
    HOST_IDENTIFIER_EXHID,
    Fid,
    HostBehaviorSupport,
    Timestamp,
)
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.controller.admin.command import AdminCommand
    from nvme_mdev.controller.controller import Controller

_SHORT_IDENTIFIER_SIZE = 8


def set_data(controller: Controller, command: AdminCommand, fid: Fid) -> int:
    """Take the command's data over as the feature's value."""
    _SETTERS[fid](controller, command)
    return 0


def get_data(controller: Controller, command: AdminCommand, fid: Fid, *, current: bool) -> int:
    """Return the feature's value, or its default (which nobody can change: nothing is saved)."""
    data = _GETTERS[fid](controller, command)
    command.respond(data if current else bytes(len(data)))
    return 0


def _set_timestamp(controller: Controller, command: AdminCommand) -> None:
    data = Timestamp.from_buffer_copy(command.receive(ctypes.sizeof(Timestamp)))
    milliseconds = int.from_bytes(bytes(data.timestamp), "little")
    controller.features.data.set_timestamp(milliseconds)


def _get_timestamp(controller: Controller, _command: AdminCommand) -> bytes:
    return bytes(controller.features.data.timestamp)


def _set_host_behavior(controller: Controller, command: AdminCommand) -> None:
    """What the host says it can do changes nothing here; what is no answer is refused."""
    raw = command.receive(ctypes.sizeof(HostBehaviorSupport))
    data = HostBehaviorSupport.from_buffer_copy(raw)
    if max(data.acre, data.etdas, data.lbafee, data.hdisns) > 1:
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.PRP1)
    controller.features.data.host_behavior = raw


def _get_host_behavior(controller: Controller, _command: AdminCommand) -> bytes:
    return controller.features.data.host_behavior


def _identifier_size(command: AdminCommand) -> int:
    long = command.sqe.cdw11 & HOST_IDENTIFIER_EXHID
    return HOST_IDENTIFIER_SIZE if long else _SHORT_IDENTIFIER_SIZE


def _set_host_identifier(controller: Controller, command: AdminCommand) -> None:
    """The registrations of the host that it was stay with that one (Base 8.1.22)."""
    identifier = command.receive(_identifier_size(command))
    if any(identifier):
        _check_size(controller, len(identifier))
    controller.features.data.set_host_identifier(identifier)
    controller.host_changed()


def _check_size(controller: Controller, size: int) -> None:
    """NvmeError: another controller of the subsystem has an identifier of the other size."""
    for one in controller.subsystem:
        is_long = one.features.data.host_identifier_is_long
        if one is not controller and one.host and is_long != (size == HOST_IDENTIFIER_SIZE):
            raise NvmeError(GenericStatus.HOST_ID_INCONSISTENT, Field.CDW11)


def _get_host_identifier(controller: Controller, command: AdminCommand) -> bytes:
    return controller.features.data.host_identifier[: _identifier_size(command)]


_SETTERS: dict[Fid, Callable[[Controller, AdminCommand], None]] = {
    Fid.TIMESTAMP: _set_timestamp,
    Fid.HOST_BEHAVIOR_SUPPORT: _set_host_behavior,
    Fid.HOST_IDENTIFIER: _set_host_identifier,
}

_GETTERS: dict[Fid, Callable[[Controller, AdminCommand], bytes]] = {
    Fid.TIMESTAMP: _get_timestamp,
    Fid.HOST_BEHAVIOR_SUPPORT: _get_host_behavior,
    Fid.HOST_IDENTIFIER: _get_host_identifier,
}
