"""Device Self-test (Base 5.1.5) and its log page (5.1.12.1.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.spec.nvme_commands import NSID_ALL, NSID_NONE
from nvme_mdev.spec.nvme_maintenance import SelfTestCode, SelfTestLog, SelfTestResult
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus

if TYPE_CHECKING:
    from nvme_mdev.controller.admin.command import AdminCommand
    from nvme_mdev.controller.controller import Controller


def device_self_test(controller: Controller, command: AdminCommand) -> int:
    """Begin a self-test, which goes on in the background, or end the one that runs."""
    code = command.sqe.cdw10 & 0xF
    if code == SelfTestCode.ABORT:
        controller.self_test.abort(SelfTestResult.ABORTED_BY_COMMAND)
        return 0
    if code not in (SelfTestCode.SHORT, SelfTestCode.EXTENDED):
        raise NvmeError(GenericStatus.INVALID_FIELD, Field.CDW10)
    nsid = command.sqe.nsid
    if nsid != NSID_NONE:
        controller.namespaces.check_nsid(nsid, broadcast=True)
        if nsid != NSID_ALL and controller.namespaces.get(nsid) is None:
            raise NvmeError(GenericStatus.INVALID_FIELD, Field.NSID)
    if controller.self_test.current != SelfTestCode.NONE:
        raise NvmeError(CommandStatus.SELF_TEST_IN_PROGRESS, dnr=False)
    controller.self_test.start(SelfTestCode(code), nsid)
    return 0


def self_test_log(controller: Controller, _command: AdminCommand) -> SelfTestLog:
    """What runs, and how the last tests went."""
    return controller.self_test.log()
