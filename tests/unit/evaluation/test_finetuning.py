"""Fine-tuning edits the weights that it says, no further than it may, and gives them back."""

from typing import Any

import pytest
import torch

from remanence import MemoryModel
from remanence.config import LoraSettings
from remanence.evaluation import finetuning
from remanence.evaluation.finetuning import BOUND, TUNED, Tuned, restored, tune, weights_of
from tests.support.tiny import LAYERS, decoder, tokenizer, with_memory

ROW = [5, 9, 11, 20, 31]


@pytest.fixture
def model() -> MemoryModel:
    return with_memory(decoder())


def state(model: MemoryModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: MemoryModel, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}


@pytest.mark.parametrize("method", TUNED)
def test_an_edit_is_learned_and_the_weights_come_back(model: MemoryModel, method: Tuned) -> None:
    memory = model.new_memory()
    model.write(memory, torch.arange(3, 23))
    before, weights = state(model), weights_of(model, method)
    model.hf.lm_head.weight.requires_grad_(False)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    with restored(model, weights):
        losses = [tune(model, memory, weights, ROW, 2, rate=5e-3) for _ in range(2)]
        moved = changed(model, before)
    assert losses[1] < losses[0]
    last = {name for name in before if f".layers.{LAYERS - 1}." in name}
    if method == "ft_all":
        assert {name.split(".layers.")[1][0] for name in moved} == {"0", "1", "2"}
    elif method == "ft":
        assert moved <= last and any("self_attn" in name for name in moved) and any("norm" in name for name in moved)
    else:
        assert moved == {name for name in last if ".mlp." in name}
    assert not changed(model, before)
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_weights_come_back_from_an_edit_that_was_cut(model: MemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, before = weights_of(model, "ft"), state(model)

    def cut(self: Any) -> None:
        weights[0].data += 1
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.Adam, "step", cut)
    with pytest.raises(KeyboardInterrupt), restored(model, weights):
        tune(model, model.new_memory(), weights, ROW, 2)
    assert not changed(model, before)


def test_ft_l_stays_within_its_bound_in_each_edit(model: MemoryModel) -> None:
    memory, weights = model.new_memory(), weights_of(model, "ft_l")
    before = [weight.detach().clone() for weight in weights]
    with restored(model, weights):
        for edit in (1, 2):
            tune(model, memory, weights, ROW, 2, bound=BOUND)
            furthest = max((weight - kept).abs().max().item() for weight, kept in zip(weights, before, strict=True))
            assert BOUND / 2 < furthest <= edit * BOUND * (1 + 1e-3)


def test_training_reads_what_reading_reads(model: MemoryModel) -> None:
    memory, ids = model.new_memory(), torch.tensor([ROW])
    model.write(memory, torch.arange(3, 23))
    logits = model.read(memory, ids[0]).logits[0, -3:-1]
    expected = torch.nn.functional.cross_entropy(logits, ids[0, -2:])
    assert finetuning._loss(model, memory, ids, 2).item() == pytest.approx(expected.item(), abs=1e-5)


def test_training_stops_once_the_answer_is_known(model: MemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, 0.5, 0.009])
    real = finetuning._loss

    def loss(*args: Any) -> torch.Tensor:
        made = real(*args)
        return made - made.detach() + next(losses)

    monkeypatch.setattr(finetuning, "_loss", loss)
    weights = weights_of(model, "ft")
    with restored(model, weights):
        assert tune(model, model.new_memory(), weights, ROW, 2) == pytest.approx(0.009)


def test_adapters_are_never_tuned() -> None:
    hf = decoder(vocab_size=300)
    adapted = with_memory(hf, tokenizer=tokenizer(), lora=LoraSettings(r=2))
    names = {id(parameter): name for name, parameter in adapted.named_parameters()}
    for method in TUNED:
        found = [names[id(weight)] for weight in weights_of(adapted, method)]
        assert found and not any("lora" in name for name in found)
    assert len(weights_of(adapted, "ft_l")) == 3
