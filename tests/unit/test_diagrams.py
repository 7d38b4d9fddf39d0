"""The diagrams in docs/design.md are the tables in the code."""

from __future__ import annotations

import re
from pathlib import Path

from nvme_mdev.controller.transitions import TRANSITIONS, Action, State

DESIGN = Path(__file__).parents[2] / "docs" / "design.md"


def _controller_diagram() -> str:
    lines = ["stateDiagram-v2", f"    [*] --> {State(0).name}"]
    for (state, event), (target, action) in TRANSITIONS.items():
        label = event.name if action is Action.NONE else f"{event.name} / {action.name}"
        lines.append(f"    {state.name} --> {target.name}: {label}")
    return "\n".join(lines)


def test_the_controllers_diagram_is_its_table() -> None:
    match = re.search(
        r"<!-- diagram: controller -->\n```mermaid\n(.*?)\n?```", DESIGN.read_text(), re.DOTALL
    )
    assert match
    assert match[1] == _controller_diagram()
