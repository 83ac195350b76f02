"""Training beyond the pool: who is asked, what is retrieved, and where the two losses send their gradients."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from remanence import MemoryModel
from remanence.config import LongTermConfig, LoraSettings
from remanence.memory.scoring import CrossLayerPrior
from remanence.training.curriculum import Batch, Curriculum
from remanence.training.optimizer import MuonAdamW
from remanence.training.tasks.longterm_task import (
    LongTermBatch,
    RetrieverLoss,
    SlotBank,
    TrainingRetrievalCache,
    build_retrieval_cache,
    question_mask,
    recall_prompts,
)
from remanence.training.tasks.pool_task import write_chunks
from remanence.training.tasks.prompts import Example, left_pad, pack
from remanence.training.trainer import MemoryTrainer
from tests.support.training import arguments, tiny_model

SLOTS, K, K0 = 8, 4, 6
CHUNKS, ROWS, BANK = 6, 3, 9
PLAIN = RetrieverLoss(random_prefix=0.0)


def model_of(layers: int = 2, prior: float = 0.0) -> MemoryModel:
    rules = LongTermConfig(retrieved=K0, cross_layer_prior=prior)
    model = tiny_model(layers, slots=SLOTS, slots_per_write=K, longterm=rules, retrieval_size=8, lora=LoraSettings(r=2))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith("retriever."))
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def batch_of(step: int = 0) -> LongTermBatch:
    """Recite one of six chunks, which no row has in its pool."""
    rng = random.Random(step)
    texts = [[rng.randrange(2, 64) for _ in range(5)] for _ in range(CHUNKS)]
    asked = [rng.randrange(CHUNKS) for _ in range(ROWS)]
    order = [rng.sample([c for c in range(CHUNKS + BANK) if c != target], 3) for target in asked]
    rows = [[Example([1, texts[target][0]], texts[target][1:])] for target in asked]
    prompts = pack(rows, pad=0)
    ids, lengths = left_pad(texts, 0)
    counted = question_mask(prompts, [[2]] * ROWS)
    spared = torch.zeros(ROWS, CHUNKS, dtype=torch.bool)
    targets = torch.tensor(asked)[:, None] == torch.arange(CHUNKS)
    parts = ids, lengths, torch.tensor(order), targets, prompts, BANK
    return LongTermBatch(*parts, ignore_mask=spared, query_mask=counted)


def chunks_of(model: MemoryModel, batch: LongTermBatch, banked: int = BANK) -> tuple[Tensor, SlotBank]:  # [M, L, K, d]
    """The slots of a step's chunks, and a bank."""
    generator = torch.Generator().manual_seed(0)
    layers, size = len(model.backbone.layers), model.hf.config.hidden_size
    older = torch.randn(banked, layers, K, size, generator=generator)
    assert model.retriever is not None
    bank = SlotBank(banked)
    bank.add(older, model.retriever.keys(model.backbone.normed, older))
    previous = torch.randn(CHUNKS, layers, K, size, generator=generator)
    return write_chunks(model, batch.chunks, batch.lengths, previous), bank


def read(
    model: MemoryModel, loss: RetrieverLoss = PLAIN, batch: LongTermBatch | None = None, seed: int = 0
) -> tuple[TrainingRetrievalCache, Tensor]:
    batch = batch_of() if batch is None else batch
    made, bank = chunks_of(model, batch)
    cache = build_retrieval_cache(model, made, bank, batch, loss, torch.Generator().manual_seed(seed))
    return cache, recall_prompts(model, cache, batch.prompts)


def graded(model: MemoryModel, loss: Tensor) -> dict[str, bool]:
    """Which parts of the model the gradient of a loss reaches."""
    model.zero_grad()
    loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    return {
        "writer": any(".writer." in name for name in reached),
        "reader": any(".reader." in name for name in reached),
        "retriever": any(name.startswith("retriever.") for name in reached),
        "rest": any(".lora_" not in name and not name.startswith("retriever.") for name in reached),
    }


def test_slots_asked_about_are_those_of_the_chunk() -> None:
    model, batch = model_of(), batch_of()
    made, _ = chunks_of(model, batch)
    cache, _ = read(model, batch=batch)
    for row, chunk in enumerate(batch.targets.int().argmax(1).tolist()):
        assert torch.equal(cache.slots[cache.target_mask[row]], made[chunk].transpose(0, 1))


def test_pools_hold_fresh_chunks_and_behind_their_number_the_banks() -> None:
    model = model_of()
    order = torch.tensor([[0, CHUNKS], [1, CHUNKS + 1], [2, CHUNKS + BANK - 1]])
    batch = replace(batch_of(), order=order)
    made, bank = chunks_of(model, batch)
    near = bank.draw(BANK, torch.Generator().manual_seed(0))
    chunks = torch.cat([made, bank.chunks(near)])
    cache, _ = read(model, batch=batch)
    for row, picked in enumerate(order):
        for layer in range(2):
            expected = chunks[picked, layer].flatten(0, 1)
            assert torch.equal(cache.slots[cache.pool[row, layer], layer], expected)


def test_what_is_asked_about_may_be_old_or_new() -> None:
    model = model_of()
    caches = [read(model, seed=seed)[0] for seed in range(12)]
    firsts = {int(cache.time[cache.target_mask[0]].min()) for cache in caches}
    middle = (CHUNKS + BANK) * K // 2
    assert min(firsts) < middle <= max(firsts)


def test_a_steps_own_chunks_keep_their_order_in_time() -> None:
    model = model_of()
    batch = replace(batch_of(), targets=torch.eye(CHUNKS).bool(), order=torch.full((CHUNKS, 2), CHUNKS))
    chunks = chunks_of(model, batch)
    batch = replace(batch, ignore_mask=torch.zeros(CHUNKS, CHUNKS, dtype=torch.bool))
    for seed in range(4):
        cache = build_retrieval_cache(model, *chunks, batch, PLAIN, torch.Generator().manual_seed(seed))
        firsts = [int(cache.time[asked].min()) for asked in cache.target_mask]
        assert firsts == sorted(firsts)


def test_loss_is_the_papers_formula_over_mean_sigmoid_scores() -> None:
    model = model_of()
    batch = batch_of()
    assert model.retriever is not None
    seen: list[Tensor] = []
    model.backbone.layers[0].self_attn.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["hidden_states"].detach()), with_kwargs=True
    )
    cache, _ = read(model, batch=batch)
    keys = model.retriever.key[0](model.backbone.normed(0, cache.slots[:, 0]))
    expected = []
    for row in range(ROWS):
        queries = model.retriever.query[0](seen[-1][row, batch.query_mask[row]])
        scores = torch.sigmoid(queries @ keys.T).mean(0)
        positive, negative = scores[cache.target_mask[row]].mean(), scores[~cache.target_mask[row]].mean()
        expected.append(-(positive + 1e-5).log() - (1 - negative + 1e-5).log())
    torch.testing.assert_close(cache.losses[0], torch.stack(expected).mean(), atol=1e-5, rtol=1e-5)


def test_with_a_temperature_each_slot_asked_about_is_told_from_all_wrong_ones() -> None:
    cache, _ = read(model_of(), replace(PLAIN, temperature=0.5))
    scores = torch.rand(cache.target_mask.shape, generator=torch.Generator().manual_seed(0))
    expected = []
    for row, asked in enumerate(cache.target_mask):
        wrong = scores[row, ~asked]
        choices = torch.stack([torch.cat([right[None], wrong]) for right in scores[row, asked]])
        expected.append(cross_entropy(choices / 0.5, torch.zeros(len(choices), dtype=torch.long)))
    torch.testing.assert_close(cache._loss(scores), torch.stack(expected).mean())


def test_products_that_saturate_their_sigmoid_are_pushed_back() -> None:
    model = model_of()
    assert model.retriever is not None
    last = [list(key.parameters())[-1] for key in model.retriever.key]
    with torch.no_grad():
        for weight in last:
            weight *= 1e3
    cache, _ = read(model, replace(PLAIN, temperature=0.5, push_back=0.5))
    for loss, weight in zip(cache.losses, last, strict=True):
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert loss > 100
        assert (gradient * weight).sum() > 100  # a step down makes the weight smaller


def test_where_all_slots_score_alike_the_wrong_ones_are_pushed_alike() -> None:
    cache, _ = read(model_of(), replace(PLAIN, temperature=0.02))
    scores = torch.full(cache.target_mask.shape, 0.5, requires_grad=True)
    cache._loss(scores).backward()
    assert scores.grad is not None
    pushed = scores.grad[~cache.target_mask]
    torch.testing.assert_close(pushed, pushed[:1].expand_as(pushed))


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_another_chunk_about_the_same_is_neither_right_nor_wrong(temperature: float | None) -> None:
    batch = batch_of()
    batch.targets[0] = torch.arange(CHUNKS) == 1
    batch.ignore_mask[0, 4] = True
    model = model_of()
    cache, _ = read(model, replace(PLAIN, temperature=temperature), batch)
    made, _ = chunks_of(model, batch)
    scores = torch.full(cache.target_mask.shape, 0.5, requires_grad=True)
    cache._loss(scores).backward()
    assert scores.grad is not None
    untold = (scores.grad == 0).nonzero()
    assert untold[:, 0].tolist() == [0] * K
    assert torch.equal(cache.slots[untold[:, 1]], made[4].transpose(0, 1))


def test_nothing_of_the_pool_is_retrieved_and_what_is_stands_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    chosen: list[Tensor] = []
    project = model.backbone.project

    def watched(layer: int, hidden: Tensor) -> tuple[Any, Any]:
        keys, values = project(layer, hidden)

        class Rows:
            def __getitem__(self, index: Tensor) -> Tensor:
                chosen.append(index)
                return keys[index]

        return (Rows(), values) if hidden.dim() == 2 and len(hidden) > 1 else (keys, values)

    monkeypatch.setattr(model.backbone, "project", watched)
    cache, _ = read(model)
    for layer, index in enumerate(chosen):
        retrieved, pool = index[:, :K0], index[:, K0:]
        assert torch.equal(pool, cache.pool[:, layer])
        for row in range(ROWS):
            assert not set(retrieved[row].tolist()) & set(pool[row].tolist())
        assert torch.equal(cache.time[retrieved], cache.time[retrieved].sort(dim=1).values)


def test_what_of_the_bank_is_hardest_to_tell_is_retrieved_by_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slot of a large bank answers every query, and no pool could have held it."""
    model = model_of()
    assert model.retriever is not None
    batch = replace(batch_of(), num_bank_chunks=2, order=torch.full((ROWS, 3), CHUNKS))
    made, bank = chunks_of(model, batch, banked=40)
    generator = torch.Generator().manual_seed(3)
    near = bank.draw(2, torch.Generator().manual_seed(3))
    far = next(number for number in range(40) if number not in near.tolist())
    wanted: dict[int, Tensor] = {}
    hardest = bank.hardest

    def watched(layer: int, queries: Tensor, counted: Tensor, each: int, known: Tensor) -> tuple[Tensor, Tensor]:
        assert torch.equal(known, near)
        alike = queries * 0 + queries[counted].mean(0)
        bank.keys[layer, far, 1] = alike[0, 0] * 1e4
        found, numbers = hardest(layer, alike, counted, each, known)
        wanted[layer] = found
        return found, numbers

    monkeypatch.setattr(bank, "hardest", watched)
    cache = build_retrieval_cache(model, made, bank, batch, PLAIN, generator)
    recall_prompts(model, cache, batch.prompts)
    for layer, others in wanted.items():
        assert any(torch.equal(slot, bank.slots[layer, far, 1]) for slot in others)
        assert others.shape == (K0, model.hf.config.hidden_size)
    assert len(cache.losses) == len(wanted) == 2


def test_retrieval_cache_applies_the_prior_of_a_read_and_trains_each_layer_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch, real = replace(batch_of(), num_bank_chunks=2), CrossLayerPrior.apply
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def noted(self: CrossLayerPrior, scores: Tensor, serial: Tensor) -> Tensor:
        seen.append((scores, serial, real(self, scores, serial)))
        return seen[-1][2]

    monkeypatch.setattr(CrossLayerPrior, "apply", noted)
    alone, _ = read(model_of(layers=3), batch=batch)
    assert not seen
    together, _ = read(model_of(layers=3, prior=0.02), batch=batch)
    assert len(seen) == 2  # of three layers, the first has no say
    again = CrossLayerPrior(0.02, K)
    for scores, serial, weighed in seen:
        assert torch.equal(real(again, scores, serial), weighed)
        assert len(serial.unique()) == len(serial) > (CHUNKS + 2) * K
    assert not torch.equal(seen[1][0], seen[1][2])
    torch.testing.assert_close(alone.losses[:2], together.losses[:2])  # until what is read differs


@pytest.mark.parametrize("prior", [0.0, 0.02])
def test_retrieval_cache_with_a_prior_reads_the_best_of_the_pool_twice(
    monkeypatch: pytest.MonkeyPatch, prior: float
) -> None:
    def pool_first(self: TrainingRetrievalCache, layer: int, _: Tensor, hidden: Tensor) -> Tensor:
        scores = torch.zeros(ROWS, len(hidden))
        return scores.scatter(1, self.pool[:, layer], 1.0)

    monkeypatch.setattr(TrainingRetrievalCache, "_scores", pool_first)
    batch = replace(batch_of(), num_bank_chunks=2)
    batch = replace(batch, order=torch.cat([batch.targets.int().argmax(1)[:, None], batch.order[:, :2]], dim=1))
    cache, _ = read(model_of(prior=prior), batch=batch)
    for layer, held in enumerate(cache.layers):
        values = held.values[:, :, : cache.prefix].transpose(1, 2).flatten(2)  # [R, P, d]
        for row in values:
            behind = row[-SLOTS:]
            twice = sum(bool((slot == behind).all(1).any()) for slot in row[-SLOTS - K0 : -SLOTS])
            assert twice == (K0 if prior and layer else 0)
    assert all(share <= 1 for share in cache.share)


def test_the_answer_trains_both_adapters_and_not_the_retriever() -> None:
    model = model_of()
    _, hidden = read(model)
    assert graded(model, hidden.square().sum()) == {"writer": True, "reader": True, "retriever": False, "rest": False}


@pytest.mark.parametrize("detach", [True, False])
def test_the_retrievers_loss_reaches_the_writer_only_if_slots_are_not_detached(detach: bool) -> None:
    model = model_of()
    cache, _ = read(model, replace(PLAIN, detach=detach))
    reached = graded(model, torch.stack(cache.losses).sum())
    assert reached == {"writer": not detach, "reader": False, "retriever": True, "rest": False}


def test_a_random_beginning_of_the_question_is_at_least_one_token_and_of_the_question() -> None:
    cache, _ = read(model_of(), replace(PLAIN, random_prefix=1.0))
    cache.query_mask = torch.tensor([[False, True, True, True, False]] * 200)
    beginnings = cache._beginnings()
    lengths = beginnings.sum(1)
    assert set(lengths.tolist()) == {1, 2, 3}
    assert torch.equal(beginnings, cache.query_mask & (cache.query_mask.cumsum(1) <= lengths[:, None]))


def build(step: int, level: int) -> Batch:
    return {"batch": batch_of(step), "task": "longterm"}


def trainer(output: Path, steps: int) -> MemoryTrainer:
    model = model_of()
    assert model.retriever is not None
    lora = [parameter for name, parameter in model.named_parameters() if ".lora_" in name]
    return MemoryTrainer(
        model,
        args=arguments(output, steps, every=4),
        curriculum=Curriculum(build, levels=1, steps=100, threshold=()),
        optimizers=(MuonAdamW(model.retriever.parameters(), lora, muon_lr=0.02, adamw_lr=0.01), None),
        bank=BANK,
        retriever_loss=RetrieverLoss(temperature=0.1, detach=False, weight=2.0),
    )


def test_a_run_logs_what_is_within_reach_and_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", 8)
    whole.train()
    assert any("longterm_within_reach_1" in entry for entry in whole.state.log_history)
    trainer(tmp_path / "cut", 4).train()
    resumed = trainer(tmp_path / "cut", 8)
    resumed.train(resume_from_checkpoint=True)
    for (name, one), (_, other) in zip(
        resumed.memory_model.named_parameters(), whole.memory_model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    loaded = MemoryModel.from_pretrained(tmp_path / "whole" / "checkpoint-8")
    assert loaded.retriever is not None and loaded.adapters is not None


def test_a_batch_that_asks_about_nothing_retrieves_and_teaches_the_retriever_nothing() -> None:
    model = model_of()
    batch = replace(batch_of(), targets=torch.zeros(ROWS, CHUNKS).bool())
    cache, hidden = read(model, batch=batch)
    assert cache.wanted == K0
    assert not cache.losses
    assert not cache.share
    reached = graded(model, hidden.square().mean())
    assert reached["reader"]
    assert not reached["retriever"]
