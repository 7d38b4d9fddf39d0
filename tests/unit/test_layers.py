"""The layers of pyproject.toml, for what import-linter cannot see: compiled modules.

It reads neither Cython nor imports of modules that have no Python source. The order is the one
declared there; only who imports whom is found here, by the text of import and cimport statements.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "nvme_mdev"
IMPORT = re.compile(r"^\s*(?:from|c?import)\s+nvme_mdev\.(\w+)", re.MULTILINE)


def _layers() -> dict[str, int]:
    """Height of each part of the package; parts of one height may not import each other."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return {
        part: height
        for height, line in enumerate(reversed(layers))
        for part in line.replace("|", " ").split()
    }


def _sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in {".py", ".pyx", ".pxd"})


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    layers = _layers()
    part = path.relative_to(PACKAGE).parts[0].removesuffix(path.suffix)
    if part == "__init__":
        return
    for other in IMPORT.findall(path.read_text()):
        assert other == part or layers[other] < layers[part], f"{part} imports {other}"


def test_every_part_of_the_package_has_a_layer() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].split(".")[0] for path in _sources()}
    assert parts - {"__init__"} == set(_layers())
