"""A training step does what writes and reads do, with gradient."""

import random

import pytest
import torch
from torch import Tensor

from remanence import MemoryModel
from remanence.training.tasks.pool_task import (
    PoolBatch,
    Prompts,
    label_loss,
    pools_of,
    read_prompts,
    surviving_slots,
    write_chunks,
)
from remanence.training.tasks.prompts import Example, left_pad, pack
from tests.support.replay import encode
from tests.support.training import tiny_model

K, SLOTS = 4, 12


def episodes_of(model: MemoryModel, order: list[list[int]], targets: list[list[bool]], chunks: int) -> PoolBatch:
    rng = random.Random(0)
    texts = [[rng.randrange(64) for _ in range(8)] for _ in range(chunks)]
    ids, lengths = left_pad(texts, 0)
    prompts = pack([[Example([1, 2, 3], [4])] for _ in order], pad=0)
    return PoolBatch(ids, lengths, torch.tensor(order), torch.tensor(targets), prompts)


def gradient_reaches(made: Tensor, pools: Tensor) -> list[bool]:  # per chunk
    (gradient,) = torch.autograd.grad(pools.square().sum(), made)
    return [bool(chunk.abs().sum() > 0) for chunk in gradient]


def test_a_pool_that_is_not_full_holds_every_slot_in_order() -> None:
    index = surviving_slots(torch.tensor([[2, 0]]), layers=2, slots=SLOTS, k=K, generator=torch.Generator())
    assert index.tolist() == [[[8, 9, 10, 11, 0, 1, 2, 3]] * 2]


def test_slots_survive_later_writes_as_often_as_the_paper_says() -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.arange(40).repeat(400, 1)
    index = surviving_slots(order, layers=1, slots=40, k=4, generator=generator)
    assert index.shape == (400, 1, 40)
    for age in (0, 3, 10):
        survived = (index // 4 == 39 - age).sum().item() / (400 * 4)
        assert survived == pytest.approx((1 - 4 / 40) ** age, abs=0.03)


def test_survivors_stay_in_order_and_none_appears_twice() -> None:
    index = surviving_slots(
        torch.arange(20).repeat(3, 1), layers=2, slots=SLOTS, k=K, generator=torch.Generator().manual_seed(1)
    )
    assert bool((index.diff(dim=-1) > 0).all())


def test_two_chunks_let_gradient_through_the_write() -> None:
    model = tiny_model(slots=SLOTS, slots_per_write=K)
    episodes = episodes_of(model, [[0]], [[True, False]], chunks=2)
    made = write_chunks(model, episodes.chunks, episodes.lengths, None)
    pools = pools_of(model, made, episodes, "last", torch.Generator())
    loss, _ = label_loss(model, read_prompts(model, pools, episodes.prompts), episodes.prompts.labels)
    loss.backward()
    assert model.new_memory_positional_emb.grad is not None
    assert float(model.new_memory_positional_emb.grad.abs().sum()) > 0


def test_many_chunks_let_gradient_through_the_asked_write_only() -> None:
    model = tiny_model(slots=SLOTS, slots_per_write=K)
    last = episodes_of(model, [[0, 1, 2]], [[False, False, True]], chunks=3)
    made = write_chunks(model, last.chunks, last.lengths, None)
    assert gradient_reaches(made, pools_of(model, made, last, "last", torch.Generator())) == [False, False, True]
    assert gradient_reaches(made, pools_of(model, made, last, "all", torch.Generator())) == [True, True, True]


def test_revisiting_lets_gradient_through_the_old_write() -> None:
    model = tiny_model(slots=SLOTS, slots_per_write=K)
    revisit = episodes_of(model, [[0, 1, 2]], [[True, False, False]], chunks=3)
    made = write_chunks(model, revisit.chunks, revisit.lengths, None)
    assert gradient_reaches(made, pools_of(model, made, revisit, "last", torch.Generator())) == [True, False, False]


def test_training_reads_what_inference_reads() -> None:
    model = tiny_model(slots=SLOTS, slots_per_write=K, keep_hidden=True).eval()
    memory = model.new_memory(seed=1)
    for text in (range(10), range(20, 32), range(5, 15), range(30, 40)):
        model.write(memory, list(text))
    prompt = [3, 1, 4, 1, 5]
    prompts = Prompts(
        torch.tensor([prompt]),
        torch.full((1, 5), -100),
        torch.ones(5, 5).tril().bool()[None],
        torch.arange(5)[None],
    )
    hidden = read_prompts(model, memory.pool.slots()[None], prompts)
    logits = model.hf.get_output_embeddings()(hidden)
    torch.testing.assert_close(logits, model.read(memory, prompt).logits, atol=1e-5, rtol=0)


def test_training_writes_what_inference_writes() -> None:
    model = tiny_model(slots=SLOTS, slots_per_write=K).eval()
    memory = model.new_memory()
    model.write(memory, list(range(12)))
    assert memory.newest is not None
    texts = [[5, 6, 7, 8, 9, 10], [11, 12], [1, 2, 3, 4, 5, 6, 7, 8]]
    ids, lengths = left_pad(texts, 0, K)
    episodes = PoolBatch(ids, lengths, torch.zeros(1, 1), torch.ones(1, 3), pack([[Example([1], [2])]], pad=0))
    made = write_chunks(model, episodes.chunks, episodes.lengths, memory.newest[None].expand(3, -1, -1, -1))
    for text, slots in zip(texts, made, strict=True):
        torch.testing.assert_close(slots, encode(model, memory, torch.tensor(text)), atol=1e-5, rtol=0)


def test_write_chunks_by_attention_in_float32_pads_as_sdpa_does() -> None:
    model = tiny_model(slots=SLOTS, slots_per_write=K).eval()
    ids, lengths = left_pad([[5, 6, 7, 8, 9, 10], [11, 12], [1, 2, 3, 4, 5]], 0, K)
    previous = torch.randn(3, 2, K, 32, generator=torch.Generator().manual_seed(0))
    made = []
    for attention in ("sdpa", "sdpa_float32"):
        model.hf.set_attn_implementation(attention)
        made.append(write_chunks(model, ids, lengths, previous))
    assert torch.equal(*made)


@pytest.mark.parametrize("contexts", [None, [[9, 8, 7, 6], [5, 4]]], ids=["no context", "contexts"])
def test_packed_examples_do_not_see_each_other(contexts: list[list[int]] | None) -> None:
    model = tiny_model(slots=SLOTS, slots_per_write=K).eval()
    rows = [[Example([1, 2], [3, 4, 5]), Example([6], [7])], [Example([8, 9, 10], [11]), Example([12, 13], [14, 15])]]
    prompts = pack(rows, pad=0, contexts=contexts)
    hidden = read_prompts(model, None, prompts)
    asked = (prompts.labels != -100) & (torch.arange(prompts.labels.shape[1]) >= prompts.context)
    logits = model.hf.get_output_embeddings()(hidden)[asked]
    expected = []
    for index, row in enumerate(rows):
        for example in row:
            front = contexts[index] if contexts else []
            ids = torch.tensor([front + example.cue + example.answer[:-1]])
            expected.append(model.hf(ids).logits[0, -len(example.answer) :])
    torch.testing.assert_close(logits, torch.cat(expected), atol=1e-5, rtol=0)


def test_labels_are_the_answers_next_tokens() -> None:
    prompts = pack([[Example([1, 2], [3, 4]), Example([5], [6])]], pad=0)
    assert prompts.ids.tolist() == [[1, 2, 3, 5, 0, 0]]
    assert prompts.labels.tolist() == [[-100, 3, 4, 6, -100, -100]]


def test_contexts_are_predicted_too_and_padding_is_not() -> None:
    prompts = pack([[Example([1], [2])], [Example([3], [4])]], pad=0, contexts=[[9, 8, 7], [5, 6]])
    assert prompts.labels.tolist() == [[8, 7, -100, 2], [-100, 6, -100, 4]]
