"""What a generation needs besides transformers' own: room for its tokens, and a check that memory gave it numbers."""

from typing import Any

from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from remanence.errors import CorruptMemoryError


class FiniteOnly(LogitsProcessor):
    """Stops a generation whose first logits are not numbers."""

    def __init__(self) -> None:
        self._checked = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self._checked:
            require_finite(scores)
            self._checked = True
        return scores


def require_finite(logits: Tensor) -> None:
    if bool(logits.isnan().any()):
        raise CorruptMemoryError(
            "reading gave logits that are not numbers: the pool or the weights hold NaN or infinity. "
            "Go back to a saved memory, or check the model in float32"
        )


def new_tokens(hf: PreTrainedModel, kwargs: dict[str, Any]) -> int:
    """Tokens that a generation may add, to size its buffers; a guess is enough, they grow."""
    config = kwargs.get("generation_config") or hf.generation_config
    for holder in (kwargs.get("max_new_tokens"), getattr(config, "max_new_tokens", None)):
        if holder is not None:
            return int(holder)
    return int(kwargs.get("max_length") or getattr(config, "max_length", None) or 20)
