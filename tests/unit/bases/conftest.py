"""A tiny base named "small", in GGUF, and a cache folder of its own for every test."""

from pathlib import Path

import pytest

from remanence.bases import BASES, Base
from tests.support.ggufs import base_for, llama, write_gguf


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", llama())


@pytest.fixture(scope="session")
def small_base(small_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Path]:
    """What is known of it, and what it becomes."""
    made = tmp_path_factory.mktemp("made") / "small"
    return base_for(small_gguf, made), made


@pytest.fixture(autouse=True)
def cache(small_base: tuple[Base, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(BASES, "small", small_base[0])
    monkeypatch.setenv("REMANENCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
