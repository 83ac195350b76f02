"""`model(ids)` is the stock call, `model(ids, memory, labels)` one behind a memory, through which gradients flow."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from remanence import MemoryModel
from remanence.errors import InvalidInputError
from tests.support import tiny
from tests.support.models import KINDS, everything, told
from tests.support.tiny import decoder, ids

CLOSE = {"atol": 1e-5, "rtol": 0.0}
every_kind = pytest.mark.parametrize("kind", KINDS)


def batch(rows: int = 2, tokens: int = 7) -> Tensor:
    return torch.stack([ids(tokens, seed=seed) for seed in range(rows)])


@every_kind
def test_forward_without_a_memory_is_the_stock_call_bit_for_bit(kind: str) -> None:
    model, given = KINDS[kind](), batch()
    told(model)
    stock = decoder()(input_ids=given, labels=given)
    made = model(given, labels=given)
    assert torch.equal(made.logits, stock.logits) and torch.equal(made.loss, stock.loss)
    assert model(given).loss is None
    if kind != "adapters":  # which freeze the decoder
        made.loss.backward()
        assert all(parameter.grad is not None for parameter in model.hf.parameters())


@every_kind
@pytest.mark.parametrize("rows", [1, 2])
def test_forward_has_the_logits_of_a_read_and_the_loss_of_its_labels(kind: str, rows: int) -> None:
    model, given = KINDS[kind](), batch(rows)
    memories = [told(model, seed) for seed in range(rows)]
    labels = given.clone()
    labels[:, :3] = -100
    read = model.read(memories, given).logits
    out = model(given, memories, labels=labels)
    torch.testing.assert_close(out.logits, read, **CLOSE)
    expected = cross_entropy(read[:, 2:-1].flatten(0, 1), given[:, 3:].flatten())
    torch.testing.assert_close(out.loss, expected, **CLOSE)
    assert model(given, memories).loss is None


@every_kind
def test_forward_takes_one_memory_for_one_row(kind: str) -> None:
    model = KINDS[kind]()
    memory = told(model)
    expected = model.read(memory, ids(6)).logits
    for given in (ids(6), ids(6)[None]):
        torch.testing.assert_close(model(given, memory).logits, expected, **CLOSE)
    torch.testing.assert_close(model(ids(6)[None], [memory]).logits, expected, **CLOSE)


def trainable(model: MemoryModel) -> dict[str, Tensor]:
    """What the reading of a memory hangs on."""
    names = [".lora_", "norm", "embed"] if model.adapters is not None else [""]
    return {
        name: parameter
        for name, parameter in model.hf.named_parameters()
        if parameter.requires_grad and ".writer." not in name and any(part in name for part in names)
    }


@every_kind
@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "layers run again"])
def test_forward_lets_gradients_through_to_the_decoder_and_leaves_the_memory_as_it_was(
    kind: str, checkpointed: bool
) -> None:
    model, given = KINDS[kind](), batch()
    memories = [told(model, seed) for seed in range(2)]
    before = [everything(memory) for memory in memories]
    if checkpointed:
        model.gradient_checkpointing_enable()
        model.train()
    model(given, memories, labels=given).loss.backward()
    held = trainable(model)
    assert len(held) > 6
    lacking = [name for name, parameter in held.items() if parameter.grad is None or not parameter.grad.any()]
    assert not lacking
    assert [everything(memory) for memory in memories] == before
    gradients = {name: parameter.grad for name, parameter in held.items()}
    plain = KINDS[kind]()
    plain(given, [told(plain, seed) for seed in range(2)], labels=given).loss.backward()
    for name, parameter in trainable(plain).items():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["pool", "longterm", "text"])
def test_forward_has_the_gradients_of_differences(kind: str) -> None:
    """Of one weight of the last layer, in float64."""
    model = KINDS[kind](decoder(dtype=torch.float64))
    memory, given = told(model), ids(7)[None]
    weight: Any = model.hf.base_model.layers[-1].post_attention_layernorm.weight
    model(given, [memory]).logits.square().mean().backward()
    assert weight.grad is not None
    step, made = 3e-3, []  # norms compute in float32
    for sign in (1, -1):
        moved = KINDS[kind](decoder(dtype=torch.float64))
        with torch.no_grad():
            moved.hf.base_model.layers[-1].post_attention_layernorm.weight[3] += sign * step
            moved.fingerprint = model.fingerprint  # type: ignore[method-assign]  # it reads what the model wrote before
            made.append(float(moved(given, [memory]).logits.square().mean()))
    assert float(weight.grad[3]) == pytest.approx((made[0] - made[1]) / (2 * step), rel=1e-2)


@every_kind
def test_forward_is_a_training_step_that_lowers_the_loss(kind: str) -> None:
    model, given = KINDS[kind](), batch()
    optimizer = torch.optim.SGD([p for p in model.hf.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(4):  # what changes the weights makes another model, so memories are written anew
        loss = model(given, [told(model, seed) for seed in range(2)], labels=given).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True) and losses[0] - losses[-1] > 1e-3


@every_kind
def test_forward_refuses_what_read_refuses(kind: str) -> None:
    model = KINDS[kind]()
    memory = told(model)
    with pytest.raises(InvalidInputError, match="2 memories take 2"):
        model(ids(5)[None], [memory, memory.fork()])
    with pytest.raises(InvalidInputError, match="must lie in"):
        model(torch.tensor([[tiny.VOCABULARY]]), memory)
