"""The long-term memory that a new memory starts with: none, or what a published checkpoint comes with."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from remanence.errors import InvalidInputError
from remanence.memory import Layout, LongTerm, LongTermLayer, LongTermRules, Storage

if TYPE_CHECKING:
    from remanence.model.memory_model import MemoryModel


def new_longterm(model: "MemoryModel", capacity: int | None, storage: Storage) -> LongTerm | None:
    """None for a model without a retriever.

    Raises:
        InvalidInputError: the capacity does not hold what one write evicts.
    """
    if model.longterm is None:
        return None
    rules = model.longterm if capacity is None else replace(model.longterm, capacity=capacity)
    if rules.policy == "oldest" and 0 < rules.capacity < model.slots_per_write:
        raise InvalidInputError(
            f"a long-term capacity of {rules.capacity} slots is smaller than one write's {model.slots_per_write}; "
            "take more, or 0 for none"
        )
    spec = model.spec
    layout = Layout(spec.kv_heads, spec.head_dim, spec.torch_dtype, spec.retrieval_size, model.device, storage)
    if model.shipped_longterm is not None:
        return model.shipped_longterm.longterm(model, rules, layout)
    return LongTerm(rules, [LongTermLayer(layout) for _ in range(spec.layers)])


@dataclass(frozen=True)
class ShippedSlots:
    """Long-term slots of one layer as they lie in a checkpoint.

    Attributes:
        hidden: `[S, d]`; keys: `[S, P]`, to be taken as they are: they need not be what the retriever would make.
        ages: `[S]`, int64; frequency: `[S]`, recall frequencies.
    """

    hidden: Tensor
    keys: Tensor
    ages: Tensor
    frequency: Tensor


class ShippedLongTerm:
    """Makes the long-term memory that each new memory starts with; projected once, then shared."""

    def __init__(self, layers: list[ShippedSlots]) -> None:
        self.layers = layers
        self._made: tuple[object, LongTerm] | None = None

    def longterm(self, model: "MemoryModel", rules: LongTermRules, layout: Layout) -> LongTerm:
        made_for = (model.fingerprint(), layout, rules)
        if self._made is None or self._made[0] != made_for:
            self._made = (made_for, self._make(model, rules, layout))
        return self._made[1].fork()

    @torch.no_grad()
    def _make(self, model: "MemoryModel", rules: LongTermRules, layout: Layout) -> LongTerm:
        made = []
        for index, shipped in enumerate(self.layers):
            layer = LongTermLayer(layout)
            hidden = shipped.hidden.to(model.device, layout.dtype)
            with model.role("read"):
                keys, values = model.backbone.project(index, hidden)
            none = torch.full_like(shipped.ages, -1)
            layer.append(torch.stack([keys, values], dim=1), shipped.keys.to(layout.dtype), -shipped.ages, none)
            layer.merged = layer.count
            if rules.policy == "recall_frequency":
                layer.frequency = shipped.frequency.clone()
            else:
                layer.drop(rules.capacity)
            made.append(layer)
        return LongTerm(rules, made)
