"""What a plan of memory is held against: a small model, and the bytes that autograd really keeps."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def kept_bytes(model: nn.Module, loss_of: Callable[[], Tensor]) -> int:
    """Of all that a forward pass keeps for its backward pass, but for the parameters."""
    kept, known = dict[int, int](), {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of()
    assert loss.requires_grad
    return sum(kept.values())
