"""No .pyx or .pxd takes a name that it does not use: ruff looks at Python alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "nvme_mdev"
IMPORT = re.compile(r"^(?:from\s+[\w.]+\s+)?c?import\s+(\([^)]*\)|[^(\n]*)", re.MULTILINE)
COMMENT_OR_STRING = re.compile(
    r"""(?P<f>\bf)?(?:\"{3}(?:.|\n)*?\"{3}|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|\#.*"""
)


def _sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in {".pyx", ".pxd"})


def _names(text: str) -> set[str]:
    """The words outside of comments and of strings, but for f-strings."""
    code = COMMENT_OR_STRING.sub(lambda match: match[0] if match["f"] else "", text)
    return set(re.findall(r"[A-Za-z_]\w*", code))


def _imported(text: str) -> list[str]:
    """The names that import statements bind."""
    bound = []
    for match in IMPORT.finditer(text):
        for clause in match[1].strip("()").replace("\n", " ").split(","):
            if clause.strip():
                name = clause.split()[-1]
                bound.append(name.split(".")[0])
    return bound


def unused(text: str) -> list[str]:
    """Names that are imported and never mentioned again."""
    code = IMPORT.sub(lambda match: "\n" * match[0].count("\n"), text)
    return sorted(set(_imported(text)) - _names(code))


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_name_that_a_cython_file_imports_is_used(path: Path) -> None:
    assert unused(path.read_text()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from a cimport b\n\nx = b\n", []),
        ("from a cimport b\n\n#: b\nx = 'b'\n", ["b"]),
        ("from a cimport (\n    b, c,\n)\n\nx = c\n", ["b"]),
        ("from a cimport b as c\n\nx = b\n", ["c"]),
        ("import os\nimport stat\n\nx = os.name\n", ["stat"]),
        ("from a cimport b\nfrom b cimport c\n\nx = c\n", ["b"]),
        ('from a import b\n\nx = f"{b}"\n', []),
    ],
)
def test_the_check_finds_what_is_unused(text: str, expected: list[str]) -> None:
    assert unused(text) == expected
