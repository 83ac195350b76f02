"""The folder of a base: found where it is whole, and what is damaged is noticed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from remanence.bases import Base, base_folder, find_base, verify, weights_digest
from remanence.bases.folder import MANIFEST, NEEDED, WEIGHTS, describe
from remanence.environment import cache_folder
from remanence.errors import CheckpointError, InvalidInputError


@pytest.fixture
def there(small_base: tuple[Base, Path]) -> Path:
    """The base in its place."""
    folder = base_folder("small")
    shutil.copytree(small_base[1], folder)
    describe(folder, "small", "a test")
    return folder


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (lambda folder: flipped(folder / WEIGHTS), f"{WEIGHTS} is damaged"),
    "the end": (lambda folder: (folder / WEIGHTS).write_bytes(b""), f"{WEIGHTS} is damaged"),
    "a file": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "the manifest": (lambda folder: (folder / MANIFEST).unlink(), f"{MANIFEST} is missing"),
    "an empty manifest": (lambda folder: (folder / MANIFEST).write_text("{}"), f"{MANIFEST} is missing or damaged"),
    "a manifest of nothing": (lambda folder: emptied(folder / MANIFEST), f"{MANIFEST} does not name"),
}


def emptied(manifest: Path) -> None:
    manifest.write_text('{"format": "remanence-base-1", "files": {}}')


def test_verify_finds_nothing_wrong_with_what_is_whole(there: Path) -> None:
    assert verify(there) is None


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_says_what_is_damaged(there: Path, damage: str) -> None:
    harm, says = DAMAGE[damage]
    harm(there)
    wrong = verify(there)
    assert wrong is not None and says in wrong


def test_find_base_finds_what_is_there(there: Path, cache: Path) -> None:
    assert find_base("small") == there == cache / "bases" / "small"


def test_find_base_says_what_to_do() -> None:
    with pytest.raises(FileNotFoundError, match="get it once with: remanence setup small") as caught:
        find_base("small")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if damage != "a bit"])
def test_find_base_does_not_find_half_of_it(there: Path, damage: str) -> None:
    DAMAGE[damage][0](there)
    with pytest.raises(FileNotFoundError, match="remanence setup small"):
        find_base("small")


def test_find_base_refuses_a_name_that_nobody_knows() -> None:
    with pytest.raises(InvalidInputError, match=r"no base model named 'large'; those there are: smollm2"):
        find_base("large")


def test_find_base_finds_the_models_own_files_in_the_cache_of_the_hub(
    small_base: tuple[Base, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    held = tmp_path / "hub" / "models--nobody--small"
    snapshot = held / "snapshots" / "abc"
    (held / "refs").mkdir(parents=True)
    (held / "refs" / "main").write_text("abc")
    shutil.copytree(small_base[1], snapshot)
    assert find_base("small") == snapshot
    (snapshot / NEEDED[-1]).unlink()
    with pytest.raises(FileNotFoundError, match="remanence setup small"):
        find_base("small")


def test_weights_digest_is_of_tensors_however_they_lie(tmp_path: Path, small_base: tuple[Base, Path]) -> None:
    tensors, digest = load_file(small_base[1] / WEIGHTS), small_base[0].weights
    name = min(tensors)
    changes = {
        "same": tensors,
        "value": {**tensors, name: tensors[name] + 1},
        "name": {f"{key}.": value for key, value in tensors.items()},
        "dtype": {key: value.float() for key, value in tensors.items()},
        "shape": {key: value.flatten() for key, value in tensors.items()},
        "fewer": {key: value for key, value in tensors.items() if key != name},
    }
    for change, held in changes.items():
        save_file(held, tmp_path / change, metadata={"made": "by a test"})
        assert (weights_digest(tmp_path / change) == digest) == (change == "same"), change


@pytest.mark.parametrize("content", [b"", b"no tensors, but a text", (5).to_bytes(8, "little") + b"[1,2]"])
def test_weights_digest_refuses_what_holds_no_tensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        weights_digest(path)


def test_cache_folder_is_the_users_or_the_one_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REMANENCE_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("REMANENCE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "remanence"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "remanence"


def test_cache_folder_holds_what_latent_scores_are_measured_from(cache: Path) -> None:
    from remanence.model.latent import _cache_file

    assert _cache_file("a model", (1,)).parent == cache
