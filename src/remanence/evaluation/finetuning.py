"""Editing by fine-tuning, the baselines FT and FT-L of model editing, as plain as they are published with ROME.

| method | weights | bound |
|---|---|---|
| ft | all of the last layer | none |
| ft_all | all of every layer | none |
| ft_l | the matrices of the last layer's MLP | no weight moves further than `BOUND` in an edit |

Adam without decay minimises the loss of the new answer behind its prompt, at most `STEPS` steps for each edit and none
once the loss is below `ENOUGH`. The steps, the learning rate and the bound are those of MemoryLLM's comparison.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remanence.memory import Memory
from remanence.model import read as reading
from remanence.model.chat import TODAY
from remanence.model.model import MemoryModel

Tuned = Literal["ft", "ft_all", "ft_l"]
TUNED: tuple[Tuned, ...] = get_args(Tuned)

RATE = 5e-4
STEPS = 25
BOUND = 1e-4
ENOUGH = 1e-2


def weights_of(model: MemoryModel, method: Tuned) -> list[nn.Parameter]:
    """The weights that a method changes: of the decoder itself, never of an adapter."""
    layers = list(model.backbone.layers)
    inside = layers if method == "ft_all" else layers[-1:]
    named = [item for layer in inside for item in layer.named_parameters() if ".lora_" not in item[0]]
    return [weight for name, weight in named if method != "ft_l" or ("mlp." in name and weight.dim() == 2)]


@contextmanager
def restored(model: MemoryModel, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """These weights alone can be trained inside; afterwards they are what they were, bit for bit, whatever happens."""
    before = [weight.detach().clone() for weight in weights]
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_()
        yield
    finally:
        for parameter, was in trained.items():
            parameter.requires_grad_(was)
        with torch.no_grad():
            for weight, kept in zip(weights, before, strict=True):
                weight.copy_(kept)


def tune(
    model: MemoryModel,
    memory: Memory,
    weights: Sequence[nn.Parameter],
    row: Sequence[int],
    answer: int,
    *,
    rate: float = RATE,
    bound: float | None = None,
) -> float:
    """Edit one fact into the weights, read behind this memory.

    Args:
        row: token ids of prompt and new answer; answer: how many of them, at the end, are the answer.
        bound: the furthest that any weight may move; None: as far as it likes.

    Returns:
        The loss before the last step.
    """
    ids = torch.tensor([list(row)], device=model.device)
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.Adam(weights, lr=rate)
    loss = torch.zeros(())
    for _ in range(STEPS):
        with torch.enable_grad():
            loss = _loss(model, memory, ids, answer)
            if loss.item() < ENOUGH:
                break
            gradients = torch.autograd.grad(loss, list(weights))
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
        if bound is not None:
            with torch.no_grad():
                for weight, kept in zip(weights, before, strict=True):
                    weight.clamp_(kept - bound, kept + bound)
    return loss.item()


def _loss(model: MemoryModel, memory: Memory, ids: Tensor, answer: int) -> Tensor:  # ids [1, T]
    """What `MemoryModel.read` computes, with gradient to the weights. The memory was written by the weights of before
    the first edit, and stays as it is: its slots are no part of what is tuned."""
    with torch.no_grad():
        model.stamp()  # weights changed since the last step, and prefixes depend on them
        prompt = model.texts.prompt(ids[0], model.device, date=TODAY)
        made = reading.learned_reading(model, [memory], [prompt])
    logits = reading.forward(model, made, {"logits_to_keep": answer + 1}).logits
    return F.cross_entropy(logits[0, :-1].float(), ids[0, -answer:])
