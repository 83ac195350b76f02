"""Parity with the published code: its recorded runs replay through the public face."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from remanence import Memory, MemoryModel
from remanence.errors import CheckpointError
from remanence.memory.published import RecallFrequency
from tests.support.replay import encode, read_pending, update

GOLDEN = Path(__file__).parent
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
            expect("delta", encode(model, memory, ids))
            model.write(memory, ids, evict=evict)
            if memory.keep_hidden:
                expect("pool", memory.pool.slots())
        elif event["op"] == "encode":
            source = event["context_from"]
            deltas[i] = encode(model, memory, ids, None if source is None else deltas[source])
            expect("delta", deltas[i])
        elif event["op"] == "update":
            ages, dropped = event.get("delta_ages"), event.get("dropped_delta")
            passed = None
            if dropped is not None:
                passed = deltas[dropped["source"]][:, dropped["rows"]], torch.tensor(dropped["ages"])
            update(
                model,
                memory,
                [deltas[source] for source in event["sources"]],
                evict=evict,
                ages=None if ages is None else torch.tensor(ages),
                passed=passed,
            )
            if memory.keep_hidden:
                expect("pool", memory.pool.slots())
        elif event["op"] == "read":
            pending = [deltas[source] for source in event.get("delta_sources", [])]
            sampled = event.get("sampled")
            if pending and memory.written:
                ranks = None if sampled is None else torch.tensor(sampled)
                out = read_pending(model, memory, ids, pending, ranks)
            else:
                out = model.read(memory, ids)
            expect("logits", out.logits[0])
            check_retrieved(model, memory, out, event, tensors)
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
            check_retrieved(model, memory, out, event, tensors)
        if "ltm_sizes" in event:
            check_longterm(memory, event)


def check_retrieved(
    model: MemoryModel, memory: Memory, out: Any, event: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """The same slots in the same order, with the ages they have, as keys and values of the recorded hidden states."""
    for recorded in event.get("ltm", []):
        layer = recorded["layer"]
        assert memory.longterm is not None
        held, found = memory.longterm.layers[layer], out.past_key_values.retrieval.found[layer][0]
        policy = memory.longterm.policy
        assert isinstance(policy, RecallFrequency)
        sizes = memory.longterm.sizes()[layer], policy.buffered(memory.longterm)[layer]
        assert sizes == (recorded["ltm_size"], recorded["buffer_size"])
        assert torch.searchsorted(held.candidates(), found.positions).tolist() == recorded["order"]
        assert (memory.longterm.clock - held.known("born", found.positions)).tolist() == recorded["ages"]
        keys, values = model.backbone.project(layer, tensors[f"{event['i']:03d}.ltm_tokens"][layer])
        torch.testing.assert_close(found.keys, keys, **TOLERANCE)
        torch.testing.assert_close(found.values, values, **TOLERANCE)


def check_longterm(memory: Memory, event: dict[str, Any]) -> None:
    longterm = memory.longterm
    assert longterm is not None
    assert longterm.sizes() == event["ltm_sizes"]
    policy = longterm.policy
    assert isinstance(policy, RecallFrequency)
    assert policy.buffered(longterm) == [event["buffer_size"]] * len(longterm.layers)
    for layer, frequency in enumerate(policy.frequency):
        buffered = [] if event["buffer_ages"] is None else event["buffer_ages"][layer]
        assert longterm.ages(layer).tolist() == event["ltm_ages"][layer] + buffered
        assert frequency[frequency > 0].tolist() == [f for f in event["ltm_recall_frequencies"][layer] if f > 0]
        assert memory.pool.ages is not None
        assert memory.pool.ages[layer][memory.pool.order[layer]].tolist() == event["pool_ages"][layer]


def test_recorded_run_of_the_published_code_replays(case: Path) -> None:
    model = MemoryModel.from_pretrained(case, keep_hidden=True)
    replay(model, model.new_memory(), json.loads((case / "trace.json").read_text()), load_file(case / "trace.st"))


def test_slots_kept_as_keys_and_values_only_read_the_same(case: Path) -> None:
    model = MemoryModel.from_pretrained(case)
    replay(model, model.new_memory(), json.loads((case / "trace.json").read_text()), load_file(case / "trace.st"))


def test_rotary_frequencies_can_be_rounded_as_the_published_usage_rounds_them(case: Path) -> None:
    exact, rounded = (MemoryModel.from_pretrained(case, bfloat16_rotary=switch) for switch in (False, True))
    frequencies = exact.hf.model.rotary_emb.inv_freq
    assert torch.equal(rounded.hf.model.rotary_emb.inv_freq, frequencies.bfloat16().float())
    assert not torch.equal(rounded.hf.model.rotary_emb.inv_freq, frequencies)


@pytest.mark.parametrize(
    "missing",
    [
        "model.layers.1.self_attn.query_proj.2.weight",
        "model.layers.2.self_attn.key_proj.0.weight",
        "ltm.1",
        "ltm_keys.0",
        "ltm_ages.2",
        "ltm_recall_frequencies.0",
    ],
)
def test_a_part_of_long_term_memory_that_is_missing_is_named(missing: str, tmp_path: Path) -> None:
    path = as_checkpoint(GOLDEN / "D-mplus-gqa", tmp_path)
    weights = load_file(path / "model.safetensors")
    del weights[missing]
    save_file(weights, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=missing.replace(".", r"\.")):
        MemoryModel.from_pretrained(path)


def test_ages_given_with_an_update_set_the_clock(tmp_path: Path) -> None:
    model = MemoryModel.from_pretrained(as_checkpoint(GOLDEN / "D-mplus-gqa", tmp_path))
    memory = model.new_memory()
    assert memory.longterm is not None
    layers, k = memory.spec.layers, memory.spec.slots_per_write
    made = encode(model, memory, torch.arange(3, 20))
    evict = torch.arange(k).repeat(layers, 1)
    ages = torch.arange(k - 1, -1, -1).repeat(layers, 1) + 5
    straight = (made[:, :2], torch.tensor([[20, 3]] * layers))
    update(model, memory, made, evict=evict, ages=ages, passed=straight)
    tail = [0 + 1 + 20] * k + [20, 3]  # what the pool dropped ages with the clock, what passed it has its own ages
    assert memory.longterm.ages(0)[-len(tail) :].tolist() == tail
    assert memory.pool.ages is not None
    assert memory.pool.ages[0][memory.pool.order[0]][-k:].tolist() == ages[0].tolist()
    update(model, memory, made, evict=evict, ages=ages)
    tail = [age + k for age in tail] + [0] * k
    assert memory.longterm.ages(0)[-len(tail) :].tolist() == tail
