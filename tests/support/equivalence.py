"""Slots that hold the layer inputs of a text are that text, which needs no other code to compare with, nor training."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remanence.model.model import MemoryModel

TOLERANCE = 1e-5  # absolute, in float32


@torch.no_grad()
def equivalence(hf: PreTrainedModel, text_ids: Tensor, prompt_ids: Tensor) -> float:
    """Largest difference between the logits of a prompt read behind a text, and behind a memory that is that text.

    Args:
        text_ids: `[N]`; prompt_ids: `[T]`. Together within the window of a model with sliding windows, because a window
            hides text, but never memory.
    """
    slots = len(text_ids)
    model = MemoryModel.attach(hf, slots=slots, slots_per_write=slots, bos=False)
    whole = hf(torch.cat([text_ids, prompt_ids])[None], output_hidden_states=True, use_cache=False)
    inputs = torch.cat(whole.hidden_states[: len(model.backbone.layers)])  # [L, N + T, d]
    logits = model.read(model.memory_from_slots(inputs[:, :slots]), prompt_ids).logits
    assert logits is not None
    return float((logits[0] - whole.logits[0, slots:]).abs().max())
