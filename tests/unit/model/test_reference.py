"""The fast path and the plain one agree (promise 7 of the design)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from remanence import MemoryModel
from remanence.config import LongTermConfig
from remanence.model import reference
from tests.support.replay import writer_of
from tests.support.tiny import decoder, with_memory
from tests.support.tiny import ids as ids_of

GOLDEN = Path(__file__).parents[2] / "golden" / "A-memoryllm-gqa"
N, K = 24, 6
CLOSE = {"atol": 1e-5, "rtol": 0.0}


def model_of(*, kv_heads: int, bos: bool) -> MemoryModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        initializer_range=0.15,
    )
    model = MemoryModel.attach(LlamaForCausalLM(config).eval(), slots=N, slots_per_write=K, bos=bos, keep_hidden=True)
    torch.nn.init.normal_(model.new_memory_positional_emb, std=0.3)
    return model


def plain(model: MemoryModel) -> dict[str, Any]:
    return {"hf": model.hf, "bos": model.bos_embedding}


def survivors(evicted: Tensor, slots: int) -> Tensor:  # [L, K] -> [L, N - K]
    return torch.tensor([sorted(set(range(slots)) - set(row)) for row in evicted.tolist()])


@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4], ids=["one kv head", "grouped", "as many kv heads"])
def test_read_and_write_do_what_the_plain_path_does(kv_heads: int, bos: bool) -> None:
    model = model_of(kv_heads=kv_heads, bos=bos)
    memory = model.new_memory(seed=3)
    model.write(memory, torch.arange(20))
    pool = memory.pool.slots()
    for tokens in (17, K, 4, 1, 9):
        ids = torch.randint(61, (tokens,))
        evicted = model.write(memory, ids).evicted[0]
        assert evicted is not None
        delta, pool = reference.write(
            **plain(model),
            positional=model.new_memory_positional_emb,
            pool=pool,
            ids=ids,
            k=K,
            kept=survivors(evicted, N),
        )
        torch.testing.assert_close(memory.newest, delta, **CLOSE)
        torch.testing.assert_close(memory.pool.slots(), pool, **CLOSE)
        fast = model.read(memory, ids).logits[0]
        torch.testing.assert_close(fast, reference.read(**plain(model), pool=pool, ids=ids), **CLOSE)


def test_generate_begins_with_the_token_of_the_plain_path() -> None:
    model = model_of(kv_heads=2, bos=True)
    memory = model.new_memory()
    model.write(memory, torch.arange(40))
    ids = torch.tensor([5, 9, 2])
    out = model.generate(
        memory, ids, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    logits = reference.read(**plain(model), pool=memory.pool.slots(), ids=ids)
    torch.testing.assert_close(out.logits[0], logits[-1:], **CLOSE)


def test_read_retrieves_what_the_plain_path_does(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 8
    model = with_memory(decoder(), longterm=LongTermConfig(retrieved=count), retrieval_size=16, keep_hidden=True)
    retriever, slots, k = model.retriever, model.slots, model.slots_per_write
    pool = torch.randn(3, slots, 32, generator=torch.Generator().manual_seed(0))  # no two alike, so that no scores tie
    memory = writer_of(model).memory_of(pool, 0, model.new_memory().longterm)
    layers, _, size = pool.shape
    ages = torch.zeros(layers, slots, dtype=torch.long)
    new_ages = torch.arange(k - 1, -1, -1).repeat(layers, 1)
    longterm = reference.LongTerm(pool[:, :0], torch.empty(layers, 0, 16), ages[:, :0])
    found: list[list[int]] = []
    retrieve = reference.retrieve

    def noted(*args: Any) -> Tensor:
        found.append(retrieve(*args).tolist())
        return torch.tensor(found[-1])

    monkeypatch.setattr(reference, "retrieve", noted)
    for write, tokens in enumerate((17, k, 4, 1, 9, 30, 12, 5), start=1):
        ids = ids_of(tokens, seed=write)
        evicted = torch.stack([torch.randperm(slots)[:k].sort().values for _ in range(layers)])
        model.write(memory, ids, evict=evicted)
        gone = pool.gather(1, evicted[..., None].expand(-1, -1, size))
        keys = reference.retrieval_keys(model.hf, retriever, gone)
        longterm = reference.append(longterm, reference.LongTerm(gone, keys, ages.gather(1, evicted)), made=k)
        kept = survivors(evicted, slots)
        positional = model.new_memory_positional_emb
        _, pool = reference.write(**plain(model), positional=positional, pool=pool, ids=ids, k=k, kept=kept)
        ages = reference.replace(ages, new_ages, kept)

        prompt = ids_of(7, seed=100 + write)
        out = model.read(memory, prompt)
        found.clear()
        logits = reference.read(
            **plain(model), pool=pool, ids=prompt, longterm=longterm, retriever=retriever, count=count
        )
        torch.testing.assert_close(out.logits[0], logits, **CLOSE)
        fast = [rows[0].positions.tolist() for rows in out.past_key_values.retrieval.found]
        assert fast == found
        assert [len(row) for row in found] == [min(count, write * k)] * layers
    assert memory.longterm is not None
    for layer in range(layers):
        assert torch.equal(memory.longterm.ages(layer), longterm.ages[layer])
    assert any(len(set(row)) < len(row) for row in longterm.ages.tolist()), "no two slots of one age: ties are untested"


def test_retrieve_of_the_plain_path_puts_the_oldest_first_and_of_equal_age_the_later() -> None:
    keys = torch.tensor([[3.0], [-1.0], [2.0], [1.0], [2.5]])
    found = reference.retrieve(torch.ones(2, 1), keys, torch.tensor([5, 9, 7, 7, 5]), count=4)
    assert found.tolist() == [3, 2, 4, 0]


def test_plain_path_replays_a_recorded_run_of_the_published_code() -> None:
    weights = load_file(GOLDEN / "weights.safetensors")
    expected = load_file(GOLDEN / "trace.safetensors")
    config = json.loads((GOLDEN / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    shape = {name: config[name] for name in (*names, "num_key_value_heads", "rms_norm_eps", "rope_theta")}
    hf = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    pool, bos, positional = (weights.pop(name) for name in ("memory", "bos_embedding", "new_memory_positional_emb"))
    hf.load_state_dict({name: weights[name] for name in hf.state_dict()})
    replayed = set()
    for event in json.loads((GOLDEN / "trace.json").read_text()):
        name, op = f"{event['i']:03d}", event["op"]
        if op == "write":
            ids, kept = torch.tensor(event["ids"]), torch.tensor(event["kept"])
            delta, pool = reference.write(hf, bos, positional, pool, ids, config["num_tokens"], kept)
            torch.testing.assert_close(delta, expected[f"{name}.delta"], atol=5e-5, rtol=0)
            torch.testing.assert_close(pool, expected[f"{name}.pool"], atol=5e-5, rtol=0)
        elif op == "read":
            logits = reference.read(hf, bos, pool, torch.tensor(event["ids"]))
            torch.testing.assert_close(logits, expected[f"{name}.logits"], atol=5e-5, rtol=0)
        else:
            continue
        replayed.add(op)
    assert replayed == {"read", "write"}
