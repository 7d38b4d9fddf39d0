"""Where VM tests are required (.ci/run), one that is skipped has failed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("required", "status", "outcome"), [("0", 0, "skipped"), ("1", 1, "error")]
)
def test_a_vm_test_without_a_lab(required: str, status: int, outcome: str) -> None:
    # Nobody can make a directory there, so there is no lab.
    environment = {"NVME_MDEV_LAB": "/proc/none", "NVME_MDEV_REQUIRE_VM": required}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/vm"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == status, result.stdout
    assert outcome in result.stdout.splitlines()[-1]
    assert "cannot prepare the VM lab" in result.stdout
