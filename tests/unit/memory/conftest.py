"""Fixtures of memories that are saved."""

from pathlib import Path

import pytest

from tests.support.longterms import use_small_blocks


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "m.safetensors"
