"""docs/control.md has the methods and settings that there are."""

from __future__ import annotations

from pathlib import Path

from nvme_mdev.service import api
from nvme_mdev.service.schema import describe
from nvme_mdev.service.settings import SETTINGS

PAGE = Path(__file__).parents[2] / "docs" / "control.md"


def methods_table() -> str:
    rows = ["| method | parameters | result | what it does |", "|---|---|---|---|"]
    for method in api.METHODS:
        parameters = [
            f"`{field['name']}`" if field["required"] else f"[`{field['name']}`]"
            for field in describe(method.params)
        ]
        result = ", ".join(f"`{field['name']}`" for field in describe(method.result))
        rows.append(
            f"| `{method.name}` | {' '.join(parameters)} | {result} | {method.summary} |".replace(
                "|  |", "| |"
            )
        )
    return "\n".join(rows)


def settings_rows() -> str:
    return "\n".join(
        f"| `{name}` | {setting.wanted.removeprefix('give ')} | {setting.when.value}"
        f" | {setting.summary} |"
        for name, setting in SETTINGS.items()
    )


def test_the_table_of_methods_is_the_programs() -> None:
    assert methods_table() in PAGE.read_text()


def test_the_table_of_settings_is_the_programs() -> None:
    assert settings_rows() in PAGE.read_text()
