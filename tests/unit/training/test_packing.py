"""Packed questions against each question read by itself."""

import pytest
import torch
from torch import Tensor

from remanence import MemoryModel
from remanence.kernels.grouped import GROUPED
from remanence.training.tasks.reader import Group, Row, answer_logits, answer_loss
from tests.support.models import randomised
from tests.support.tiny import WINDOW, decoder, ids
from tests.unit.model.test_reader import LORA

HEAD = (1,)
CHUNKS = [[20, 7], [5], [2 * WINDOW]]
ROWS = [[(4, 2), (9, 1), (3, 5)], [(6, 3)], [(2, 2), (5, 4)]]


def setting(family: str, attention: str | None = None) -> tuple[MemoryModel, list[list[Tensor]], list[Group]]:
    targets = ("q_proj", "v_proj", "down_proj", "query_key_value", "c_proj")
    hf = decoder(family, attention=attention)
    there = {name.rsplit(".", 1)[-1] for name, _ in hf.named_modules()}
    lora = LORA.replace(target_modules=tuple(name for name in targets if name in there))
    model = randomised(MemoryModel.attach(hf, min_score=None, lora=lora))
    texts = [[ids(n, seed=10 * g + n) for n in sizes] for g, sizes in enumerate(CHUNKS)]
    [head] = model.writer.encode([((), torch.tensor(HEAD))])
    groups = []
    for g, (chunks, rows) in enumerate(zip(texts, ROWS, strict=True)):
        slots = [one.slots for one in model.writer.encode([(HEAD, c) for c in chunks])]
        made = [Row(ids(p, seed=100 * g + p).tolist(), ids(a, seed=200 * g + a).tolist()) for p, a in rows]
        groups.append(Group([head.slots, *slots], made))
    return model, texts, groups


def read_one_by_one(model: MemoryModel, texts: list[list[Tensor]], groups: list[Group]) -> Tensor:  # [A, V]
    logits = []
    for chunks, group in zip(texts, groups, strict=True):
        memory = model.new_memory()
        for chunk in chunks:
            model.write(memory, chunk)
        for row in group.rows:
            text = torch.tensor([*HEAD, *row.prompt, *row.answer])
            logits.append(model(text[None], memory).logits[0, -len(row.answer) - 1 : -1])
    return torch.cat(logits)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_neox", "qwen3", "gemma2"])
def test_answer_logits_of_packed_questions_are_those_of_reading_each(family: str) -> None:
    model, texts, groups = setting(family)
    logits, targets, owners = answer_logits(model, groups)
    torch.testing.assert_close(logits, read_one_by_one(model, texts, groups), atol=2e-5, rtol=0)
    answers = [row.answer for group in groups for row in group.rows]
    assert targets.tolist() == [token for answer in answers for token in answer]
    assert owners.tolist() == [number for number, answer in enumerate(answers) for _ in answer]


def test_answer_loss_has_the_gradients_of_reading_each() -> None:
    model, texts, groups = setting("llama")
    adapters = [parameter for name, parameter in model.named_parameters() if ".lora_" in name]
    answer_loss(model, groups).backward()
    packed = [parameter.grad for parameter in adapters]
    for parameter in adapters:
        parameter.grad = None
    targets = torch.tensor([token for group in groups for row in group.rows for token in row.answer])
    weights = torch.cat([torch.full((len(r.answer),), len(r.answer) ** -0.5) for g in groups for r in g.rows])
    losses = torch.nn.functional.cross_entropy(read_one_by_one(model, texts, groups), targets, reduction="none")
    ((losses * weights).sum() / weights.sum()).backward()
    for one, parameter in zip(packed, adapters, strict=True):
        assert one is not None and parameter.grad is not None and parameter.grad.any()
        torch.testing.assert_close(one, parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_grouped_products_give_the_loss_and_gradients_of_sdpa(family: str) -> None:
    grads, losses = [], []
    for attention in ("sdpa", GROUPED):
        model, _, groups = setting(family, "sdpa")
        model.hf.set_attn_implementation(attention)
        loss = answer_loss(model, groups)
        loss.backward()
        losses.append(loss.detach())
        grads.append([parameter.grad for name, parameter in model.named_parameters() if ".lora_" in name])
    torch.testing.assert_close(*losses, atol=1e-6, rtol=0)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
