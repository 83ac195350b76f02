"""The comparison with the published code, as far as it goes without that code: the plain path stands in for it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import run as runner
from published import run, sizes
from remanence import MemoryModel
from remanence.model import reference
from tables import markdown

TINY = sizes.config_of(layers=2, d=32, inner=48, heads=4, shared=2, k=32, blocks=3, v=64)
MEASURES = {"write", "first_after_write", "first", "token"}


def ids(count: int, seed: int) -> torch.Tensor:
    return torch.randint(3, 64, (count,), generator=torch.Generator().manual_seed(seed))


def plain_answer(folder: Path) -> dict[str, torch.Tensor]:
    """What the published code would say at the gate, which draws whom it keeps."""
    weights: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        weights |= load_file(file)
    hf, pool, bos = MemoryModel.from_pretrained(folder).hf, weights["memory"], weights["bos_embedding"]
    for number, count in enumerate((512, 20, 300)):
        torch.manual_seed(number)
        kept = torch.stack([torch.randperm(96)[:64].sort().values for _ in range(2)])
        positional = weights["new_memory_positional_emb"]
        _, pool = reference.write(hf, bos, positional, pool, ids(count, number), 32, kept)
    text, logits = ids(32, 3), []
    for _ in range(33):
        logits.append(reference.read(hf, bos, pool, text)[-1])
        text = torch.cat([text, logits[-1].argmax()[None]])
    return {"tokens": text[32:], "logits": torch.stack(logits).detach()}


def test_our_side_answers_as_the_plain_path_and_is_timed(tmp_path: Path) -> None:
    sizes.make(TINY, tmp_path / "model")
    on = run.Settings(tmp_path, Path("none"))
    said = run.worker("remanence", tmp_path / "model", on, turns=2, gate=str(tmp_path / "ours"))
    save_file(plain_answer(tmp_path / "model"), tmp_path / "plain")
    assert run.agreement([tmp_path / "plain", tmp_path / "ours"])["tokens"] == 33
    assert len(said["turns"]) == 2 and all(turn.keys() == MEASURES for turn in said["turns"])
    assert all(taken > 0 for turn in said["turns"] for taken in turn.values())
    pool, newest = 2 * 2 * 96 * 16 * 4, 2 * 32 * 32 * 4  # keys and values, two of four heads wide; hidden
    assert pool + newest <= said["memory_bytes"] < 1.1 * (pool + newest) and said["prefix_bytes"] >= pool
    assert said["peak_bytes"] > 2**20 and said["versions"]["torch"] == torch.__version__


def test_a_side_that_fails_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match="the published side failed"):
        run.worker("published", tmp_path, run.Settings(tmp_path, Path("false")))


@pytest.mark.parametrize(("logit", "token"), [(1e-3, 0), (float("nan"), 0), (0.0, 1)])
def test_sides_that_do_not_agree_end_the_run(tmp_path: Path, logit: float, token: int) -> None:
    for name, more in (("first", 0.0), ("second", logit)):
        logits = torch.tensor([[4.0, 1.0 + more]])
        save_file({"tokens": torch.tensor([0 if name == "first" else token]), "logits": logits}, tmp_path / name)
    with pytest.raises(SystemExit, match="do not agree"):
        run.agreement([tmp_path / "first", tmp_path / "second"])


def test_another_folder_than_a_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no modeling_memoryllm\.py in .*: name a checkout"):
        run.measure(run.Settings(tmp_path, Path("python")))


def test_the_largest_size_fits() -> None:
    chosen, more = sizes.SIZES[sizes.largest(24e9)], sizes.SIZES["8b-16"]
    assert chosen == sizes.SIZES["8b-12"] and sizes.needed(chosen) < 24e9 < sizes.needed(more)
    weights = 12 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 2 * 32000 * 4096
    pool = 12 * 12800 * 4096
    assert sizes.needed(chosen) - 3e9 == pytest.approx(4 * (weights + 2 * pool + 10 * pool / 12), rel=1e-3)


def test_figures_say_how_they_were_taken_and_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def worker(side: str, model: Path, on: run.Settings, turns: int = 0, **job: str) -> dict[str, Any]:
        calls.append((side, turns))
        if "gate" in job:
            save_file({"tokens": torch.arange(33), "logits": torch.ones(33, 64)}, job["gate"])
        slow = 4.0 if side == "published" else 1.0
        times = [1000.0, *[slow] * (turns - 1)]  # the first turn does not count
        held = {"memory_bytes": 2**20, "prefix_bytes": 0, "peak_bytes": 2**21, "versions": {"transformers": "4.48.2"}}
        return {"turns": [dict.fromkeys(MEASURES, time) for time in times], **held}

    monkeypatch.setattr(run, "worker", worker)
    monkeypatch.setattr(sizes, "SIZES", {"tiny": TINY})
    (tmp_path / "modeling_memoryllm.py").touch()
    file, threads = tmp_path / "figures.json", torch.get_num_threads()
    command = ["published", "--published", str(tmp_path), "--published-python", "python", "--json", str(file)]
    try:
        runner.main([*command, "--size", "tiny", "--rounds", "2", "--samples", "3"])
        figures = json.loads(file.read_text())
        runner.main([*command, "--largest", "24", "--rounds", "1"])
    finally:
        torch.set_num_threads(threads)
    sides = ["published", "remanence", "optimized"]
    assert calls[:9] == [*((side, 0) for side in sides), *((side, 4) for side in sides * 2)]
    assert calls[9:] == [*((side, 0) for side in sides[:2]), *((side, 6) for side in sides[:2])]
    assert figures["command"] == (
        f"python benchmarks/run.py published --published {tmp_path.name} --published-python python --size tiny "
        "--rounds 2 --samples 3"
    )
    assert figures["date"] and figures["device"].endswith("with 1 thread") and figures["versions"]["remanence"]
    first = {row["name"]: row["cells"] for row in figures["rows"]}["first token, of later answers"]
    once = {"median": 1, "quartiles": [1, 1], "mean": 1, "samples": 6, "unit": "ms"}
    assert first["Remanence"] == once and first["published / Remanence"] == {
        "value": 4,
        "unit": "x",
        "ratios": [4, 4],
    }
    shown, ours = markdown(figures), "1.00 ms (1.00 to 1.00) | 4.00x"
    line = f"| first token, of later answers | 4.00 ms (4.00 to 4.00) | {ours} | {ours} | 3.50x |"
    assert line in shown and "| the memory | 1.0 MiB | 1.0 MiB |  | 1.0 MiB |  |  |" in shown
    assert "transformers 4.48.2" in shown and "of 6 samples each" in shown
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
