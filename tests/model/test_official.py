"""Parity with the published code: its recorded runs replay through the public face."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from remanence import Memory, MemoryModel

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir() if (path / "trace.json").is_file())
TOLERANCE = {"atol": 5e-5, "rtol": 0.0}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return as_checkpoint(GOLDEN / request.param, tmp_path)


def as_checkpoint(source: Path, target: Path) -> Path:
    """A recorded case, laid out as a published checkpoint."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    (target / "weights.safetensors").rename(target / "model.safetensors")
    (target / "trace.safetensors").rename(target / "trace.st")
    return target


def evicted_from(kept: list[list[int]] | None, slots: int) -> Tensor | None:
    if kept is None:
        return None
    return torch.tensor([sorted(set(range(slots)) - set(row)) for row in kept])


def replay(model: MemoryModel, memory: Memory, trace: list[dict[str, Any]], tensors: dict[str, Tensor]) -> None:
    deltas: dict[int, Tensor] = {}
    for event in trace:
        i, ids = event["i"], torch.tensor(event.get("ids", []))

        def expect(name: str, got: Tensor, i: int = i, event: dict[str, Any] = event) -> None:
            torch.testing.assert_close(
                got, tensors[f"{i:03d}.{name}"], **TOLERANCE, msg=lambda m: f"{event['op']} {i} {name}: {m}"
            )

        evict = evicted_from(event.get("kept"), memory.pool.size) if memory.written else None
        if event["op"] == "write":
            expect("delta", model.encode(memory, ids))
            model.write(memory, ids, evict=evict)
            expect("pool", memory.pool.slots())
        elif event["op"] == "encode":
            source = event["context_from"]
            deltas[i] = model.encode(memory, ids, after=None if source is None else deltas[source])
            expect("delta", deltas[i])
        elif event["op"] == "update":
            model.update(memory, [deltas[source] for source in event["sources"]], evict=evict)
            expect("pool", memory.pool.slots())
        elif event["op"] == "read":
            pending = [deltas[source] for source in event.get("delta_sources", [])] or None
            sampled = event.get("sampled")
            out = model.read(memory, ids, pending=pending, sampled=None if sampled is None else torch.tensor(sampled))
            expect("logits", out.logits[0])
        elif event["op"] == "generate":
            out = model.generate(
                memory,
                ids,
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=None,
                return_dict_in_generate=True,
                output_logits=True,
            )
            assert out.sequences[0, len(ids) :].tolist() == event["new_ids"]
            expect("step_logits", torch.cat(out.logits))


def test_recorded_run_of_the_published_code_replays(case: Path) -> None:
    model = MemoryModel.from_pretrained(case, keep_hidden=True)
    replay(model, model.new_memory(), json.loads((case / "trace.json").read_text()), load_file(case / "trace.st"))


def test_slots_kept_as_keys_and_values_only_read_the_same(case: Path) -> None:
    trace = [e for e in json.loads((case / "trace.json").read_text()) if e["op"] in ("read", "generate")][:2]
    model = MemoryModel.from_pretrained(case)
    tensors = load_file(case / "trace.st")
    for event in trace[:1] if trace[0]["i"] == 0 else []:
        out = model.read(model.new_memory(), torch.tensor(event["ids"]))
        torch.testing.assert_close(out.logits[0], tensors["000.logits"], **TOLERANCE)
