"""The controller's namespaces: which NSID is which backend, and how a guest knows it again."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvme_mdev.controller.errors import Field, NvmeError
from nvme_mdev.controller.settings import NAMESPACE_UUID
from nvme_mdev.spec.nvme_commands import NSID_ALL
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.datapath.backends.base import Backend


@dataclass(frozen=True, slots=True)
class Namespace:
    """An active namespace."""

    nsid: int
    backend: Backend
    uuid: uuid.UUID
    """The same whenever the same backend is served, whatever its NSID."""
    nguid: bytes
    """16 bytes; as stable as the UUID, and different from it."""

    @property
    def blocks(self) -> int:
        """Size in logical blocks (NSZE)."""
        return self.backend.size // self.backend.block_size


def make_namespace(nsid: int, backend: Backend, serial: str) -> Namespace:
    """Give a backend its identifiers.

    They come from the backend's identity, or, where it has none, from the controller's serial
    number and the NSID. We have no OUI, so there is no EUI-64, and the NGUID is a hash.
    """
    name = backend.identity or f"{serial}:{nsid}"
    return Namespace(
        nsid,
        backend,
        uuid.uuid5(NAMESPACE_UUID, f"namespace:{name}"),
        uuid.uuid5(NAMESPACE_UUID, f"nguid:{name}").bytes,
    )


class Namespaces:
    """NSID to namespace (Base 3.2.1)."""

    def __init__(self, max_nsid: int) -> None:
        """``max_nsid``: NN."""
        self._max_nsid = max_nsid
        self._by_nsid: dict[int, Namespace] = {}
        self.lost: dict[int, Namespace] = {}
        """Inactive, because their medium has gone; they come back with it."""

    def __iter__(self) -> Iterator[Namespace]:
        """The active namespaces, by ascending NSID."""
        return iter(sorted(self._by_nsid.values(), key=lambda namespace: namespace.nsid))

    def __len__(self) -> int:
        return len(self._by_nsid)

    def get(self, nsid: int) -> Namespace | None:
        """The namespace, None when the NSID is not active."""
        return self._by_nsid.get(nsid)

    def add(self, namespace: Namespace) -> None:
        """Make a namespace active; ValueError: an NSID that is out of range or in use."""
        if not 1 <= namespace.nsid <= self._max_nsid:
            raise ValueError(f"namespace {namespace.nsid}: 1 to {self._max_nsid} are possible")
        if namespace.nsid in self._by_nsid or namespace.nsid in self.lost:
            raise ValueError(f"namespace {namespace.nsid} exists")
        self._by_nsid[namespace.nsid] = namespace

    def remove(self, nsid: int) -> Namespace:
        """Make it inactive; KeyError: it is not active."""
        return self._by_nsid.pop(nsid)

    def lose(self, nsid: int) -> None:
        """Make it inactive until :meth:`find`."""
        self.lost[nsid] = self.remove(nsid)

    def find(self, nsid: int) -> None:
        """Make a lost one active again."""
        self.add(self.lost.pop(nsid))

    def volatile(self) -> list[Backend]:
        """The backends that have a volatile write cache."""
        return [namespace.backend for namespace in self if namespace.backend.volatile_cache]

    def check_nsid(self, nsid: int, *, broadcast: bool = False) -> None:
        """NvmeError when the NSID is invalid: no namespace could have it (Base 3.2.1.2)."""
        valid = broadcast if nsid == NSID_ALL else 1 <= nsid <= self._max_nsid
        if not valid:
            raise NvmeError(GenericStatus.INVALID_NAMESPACE_OR_FORMAT, Field.NSID)
