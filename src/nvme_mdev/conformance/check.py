"""A check: one sentence of a specification, and the function that finds out whether it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvme_mdev.conformance.subject import Subject

Function: TypeAlias = "Callable[[Subject], None]"
Need: TypeAlias = "Callable[[Subject], str | None]"
"""Why a check does not apply to a controller, in a few words; None: it does."""


class CheckFailed(Exception):  # noqa: N818 (what a check found is no error of the program)
    """The controller does not do what the sentence says; the text says what it did."""


class NotApplicable(Exception):  # noqa: N818
    """The sentence says nothing about this controller; the text says why."""


@dataclass(frozen=True, slots=True)
class Check:
    """One *shall* of a specification."""

    group: str
    """What the check is about; the module that it is in."""
    name: str
    sentence: str
    """What is proved, as a sentence."""
    sections: tuple[str, ...]
    """Where it is written: ``Base`` (NVM Express Base Specification 2.1), ``NVM`` (NVM Command Set
    Specification 1.1) or ``PCIe`` (NVMe over PCIe Transport Specification 1.1), and the number;
    ``PCI`` is the PCI Express Base Specification."""
    function: Function
    needs: tuple[Need, ...] = ()
    destructive: bool = False
    """It writes to the namespace, or changes what outlives the controller."""

    @property
    def id(self) -> str:
        """Group and name, unique."""
        return f"{self.group}.{self.name}"


class Group:
    """The checks of one module, in the order in which they are written."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.checks: list[Check] = []

    def check(
        self, *sections: str, needs: Need | tuple[Need, ...] = (), destructive: bool = False
    ) -> Callable[[Function], Function]:
        """Make a check of a function: its docstring's first paragraph is the sentence."""
        wanted = needs if isinstance(needs, tuple) else (needs,)

        def register(function: Function) -> Function:
            first = (function.__doc__ or "").split("\n\n")[0]
            sentence = " ".join(first.split()).rstrip(".")
            self.checks.append(
                Check(
                    self.name,
                    function.__name__.strip("_"),
                    sentence,
                    sections,
                    function,
                    wanted,
                    destructive,
                )
            )
            return function

        return register

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)
