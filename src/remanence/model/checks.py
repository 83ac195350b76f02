"""What a `MemoryModel` is handed, checked against it before anything happens."""

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from remanence.errors import InvalidInputError
from remanence.memory import Memory
from remanence.model.inputs import to_ids, to_rows

if TYPE_CHECKING:
    from remanence.model.decoder import MemoryDecoder


def rows_of(
    model: "MemoryDecoder", memory: Memory | Sequence[Memory], content: Any
) -> tuple[list[Memory], list[Tensor]]:
    """Memories of this model, and a row of token ids for each.

    Raises:
        InvalidInputError, MemoryMismatchError: says what does not fit.
    """
    memories = list(memory) if isinstance(memory, Sequence) else [memory]
    if not memories:
        raise InvalidInputError("no memory was given")
    require_own(model, *memories)
    if len({id(one) for one in memories}) < len(memories):
        raise InvalidInputError("the same memory was given twice; give each row its own, or a fork")
    vocabulary = model.hf.get_input_embeddings().num_embeddings
    about = {"tokenizer": model.tokenizer, "vocabulary": vocabulary, "device": model.device}
    rows = [to_ids(content, **about)] if isinstance(memory, Memory) else to_rows(content, len(memories), **about)
    return memories, rows


def require_own(model: "MemoryDecoder", *memories: Memory) -> None:
    """Raise where a memory was written by another model, or lies elsewhere."""
    spec, device = model.spec, model.device
    for memory in memories:
        if not isinstance(memory, Memory):
            raise InvalidInputError(f"expected a Memory, or a list of them, got {type(memory).__name__}")
        spec.require(memory.spec)
        for elsewhere in memory.devices - {device}:
            raise InvalidInputError(
                f"the memory is on {elsewhere}, the model on {device}; move it with memory.to({str(device)!r})"
            )


def integer(name: str, value: Any) -> int:
    """A number as an int, NumPy's too. A bool in the place of a count is a slip."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InvalidInputError(f"{name} must be an integer, got {value!r}")
    return int(value)


def require_slots(model: "MemoryDecoder", slots: Tensor | Sequence[Tensor]) -> Tensor:  # [L, q, d]
    """Slots in hidden form, several joined in their order."""
    slots = slots if isinstance(slots, Tensor) else torch.cat(list(slots), dim=1)
    expected = (len(model.backbone.layers), model.hf.config.hidden_size)
    fits = slots.dim() == 3 and (slots.shape[0], slots.shape[2]) == expected and slots.shape[1] > 0
    if not fits or slots.dtype != model.backbone.dtype or slots.device != model.device:
        raise InvalidInputError(
            f"slots must be {model.backbone.dtype} of shape [{expected[0]}, q, {expected[1]}] on {model.device}, "
            f"got {slots.dtype} of shape {list(slots.shape)} on {slots.device}"
        )
    return slots


def require_ages(ages: Tensor | None, slots: Tensor) -> Tensor | None:  # [L, q]
    """Ages of slots `[L, q, d]`."""
    if ages is None:
        return None
    if ages.shape != slots.shape[:2] or ages.is_floating_point():
        raise InvalidInputError(f"ages must be integers of shape {list(slots.shape[:2])}, got {list(ages.shape)}")
    return ages.long()
