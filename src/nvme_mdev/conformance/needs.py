"""What a check needs of a controller, asked of the controller itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.spec.nvme_identify_controller import Lpa, Oacs, Oncs, Sgls, Vwc
from nvme_mdev.spec.nvme_identify_namespace import Nsattr
from nvme_mdev.spec.nvme_registers import CapBit, Register
from nvme_mdev.spec.nvme_registers import version as packed_version

if TYPE_CHECKING:
    from nvme_mdev.conformance.check import Need
    from nvme_mdev.conformance.subject import Subject


def _unless(holds: object, why: str) -> str | None:
    return None if holds else why


def cap(bit: CapBit) -> Need:
    """A bit of CAP."""
    return lambda subject: _unless(subject.host.cap.bits & bit, f"CAP.{bit.name} is 0")


def cap_lacks(bit: CapBit) -> Need:
    """A bit of CAP that is 0."""
    return lambda subject: _unless(not subject.host.cap.bits & bit, f"CAP.{bit.name} is 1")


def oncs(bit: Oncs) -> Need:
    """A bit of Optional NVM Command Support."""
    return lambda subject: _unless(subject.controller.oncs & bit, f"ONCS.{bit.name} is 0")


def oacs(bit: Oacs) -> Need:
    """A bit of Optional Admin Command Support."""
    return lambda subject: _unless(subject.controller.oacs & bit, f"OACS.{bit.name} is 0")


def lpa(bit: Lpa) -> Need:
    """A bit of Log Page Attributes."""
    return lambda subject: _unless(subject.controller.lpa & bit, f"LPA.{bit.name} is 0")


def sgls(bit: Sgls) -> Need:
    """A bit of SGL Support, and SGLs at all."""
    return lambda subject: _unless(
        subject.controller.sgls & 3 and subject.controller.sgls & bit, f"SGLS.{bit.name} is 0"
    )


def version(major: int, minor: int) -> Need:
    """The controller complies with this revision of the specification, or a later one."""

    def need(subject: Subject) -> str | None:
        claims = subject.register(Register.VS)
        return _unless(claims >= packed_version(major, minor), f"VS is below {major}.{minor}")

    return need


def has_sgls(subject: Subject) -> str | None:
    """SGLs in I/O commands."""
    return _unless(subject.controller.sgls & 3, "SGLS is 0")


def lacks_sgls(subject: Subject) -> str | None:
    """No SGLs."""
    return _unless(not subject.controller.sgls & 3, "SGLS is not 0")


def fused(subject: Subject) -> str | None:
    """Fused Compare and Write."""
    return _unless(subject.controller.fuses & 1, "FUSES.FCWS is 0")


def not_fused(subject: Subject) -> str | None:
    """No fused operations."""
    return _unless(not subject.controller.fuses, "FUSES is not 0")


def volatile_cache(subject: Subject) -> str | None:
    """A volatile write cache."""
    return _unless(subject.controller.vwc & Vwc.VWCP, "VWC.VWCP is 0")


def no_volatile_cache(subject: Subject) -> str | None:
    """No volatile write cache."""
    return _unless(not subject.controller.vwc & Vwc.VWCP, "VWC.VWCP is 1")


def writable(subject: Subject) -> str | None:
    """The namespace is not write protected."""
    attributes = subject.namespace.identify.nsattr
    return _unless(not attributes & Nsattr.CWP, "the namespace is write protected")


def write_protected(subject: Subject) -> str | None:
    """The namespace is write protected."""
    return _unless(subject.namespace.identify.nsattr & Nsattr.CWP, "the namespace can be written")


def transfer_limit(subject: Subject) -> str | None:
    """A maximum data transfer size."""
    return _unless(subject.controller.mdts, "MDTS is 0: no limit")


def keep_alive(subject: Subject) -> str | None:
    """Keep Alive."""
    return _unless(subject.controller.kas, "KAS is 0")


def sanitize(subject: Subject) -> str | None:
    """Any kind of sanitize operation."""
    return _unless(subject.controller.sanicap & 7, "SANICAP is 0")


def msix(subject: Subject) -> str | None:
    """At least two MSI-X vectors."""
    return _unless(subject.host.transport.msix_vectors() >= 2, "fewer than two MSI-X vectors")


def feature(fid: int) -> Need:
    """A feature that Get Features returns."""

    def need(subject: Subject) -> str | None:
        from nvme_mdev.host import commands

        reply = subject.host.admin(commands.get_features(fid), receive=4096, check=False)
        return _unless(reply.completion.ok, f"feature {fid:02X}h is not supported")

    return need
