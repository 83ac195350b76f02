"""What a new memory starts with: a pool, and long-term memory, which is empty or comes with a published checkpoint."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from remanence.errors import InvalidInputError
from remanence.memory import Layout, LongTerm, LongTermLayer, LongTermRules, Memory, Pool, Storage
from remanence.model.checks import integer, require_slots
from remanence.model.decoder import MemoryDecoder
from remanence.model.writing import projected


def memory_of(model: MemoryDecoder, hidden: Tensor, seed: int, longterm: LongTerm | None) -> Memory:
    """A memory whose pool holds slots in hidden form, `[L, N, d]`, oldest first."""
    if require_slots(model, hidden).shape[1] != model.slots:
        raise InvalidInputError(f"the pool takes {model.slots} slots per layer, got {hidden.shape[1]}")
    hidden = hidden.clone(memory_format=torch.contiguous_format)
    new = projected(model, hidden[None], [0])[0]
    serial = torch.arange(model.slots, device=model.device).repeat(len(new.keys), 1)
    kept = {} if longterm is None else {"retrieval": new.retrieval, "ages": torch.zeros_like(serial)}
    return Memory(
        model.spec,
        seed=seed,
        keep_hidden=model.keep_hidden,
        pool=Pool(new.keys, new.values, serial, hidden if model.keep_hidden else None, **kept),
        newest=hidden[:, -model.slots_per_write :].clone(),
        longterm=longterm,
    )


def new_longterm(model: MemoryDecoder, capacity: int | None, storage: Storage) -> LongTerm | None:
    """None for a model without a retriever.

    Raises:
        InvalidInputError: the capacity is no integer or does not hold what one write evicts; `storage` is no `Storage`.
    """
    if capacity is not None:
        capacity = integer("capacity", capacity)
    if not isinstance(storage, Storage):
        raise InvalidInputError(f"storage takes a Storage, such as Storage('disk'), got {storage!r}")
    if model.longterm is None:
        return None
    rules = model.longterm if capacity is None else replace(model.longterm, capacity=capacity)
    if capacity is not None and rules.policy == "recall_frequency":
        raise InvalidInputError("this model drops slots by how often they are recalled; leave capacity= out")
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

    def longterm(self, model: MemoryDecoder, rules: LongTermRules, layout: Layout) -> LongTerm:
        made_for = (model.stamp(), layout, rules)
        if self._made is None or self._made[0] != made_for:
            self._made = (made_for, self._make(model, rules, layout))
        return self._made[1].fork()

    @torch.no_grad()
    def _make(self, model: MemoryDecoder, rules: LongTermRules, layout: Layout) -> LongTerm:
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
