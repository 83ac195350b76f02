"""Processes that are killed while they write: nothing acknowledged is lost, and nothing is unreadable."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stores import WRITERS


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_what_was_acknowledged_is_there_after_a_kill(writer: str, tmp_path: Path) -> None:
    words = [writer, str(tmp_path / "store"), str(tmp_path / "snapshots"), "20", "0"]
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.crashing", *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "verified 20" in done.stdout
