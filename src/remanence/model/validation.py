"""Which models can have a memory, and which memories belong to a model.

What does not fit is refused before anything is done to it, with the cause and the remedy.
"""

import hashlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remanence.errors import InvalidInputError, UnsupportedModelError
from remanence.memory.memory import Memory
from remanence.memory.spec import MemorySpec

Named = Callable[[nn.Module], Iterable[tuple[str, nn.Parameter]]]
_SAMPLED = 61  # numbers of each parameter
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def unwrapped(model: Any) -> PreTrainedModel:
    """The model inside a `PeftModel`, with its adapters; any other model as it is.

    Raises:
        UnsupportedModelError: an adapter puts tokens of its own in front of the text, or this is no transformers model.
    """
    if hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
        for name, config in model.peft_config.items():
            if getattr(config, "is_prompt_learning", False):
                raise UnsupportedModelError(
                    f"the adapter {name!r} ({config.peft_type}) puts tokens of its own in front of the text, where "
                    "memory stands; use an adapter that changes weights, such as LoRA, or the model without it"
                )
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"expected a transformers model, got {type(model).__name__}; pass what AutoModelForCausalLM loads, and "
            "wrap or compile it afterwards"
        )
    return model


def require_supported(hf: PreTrainedModel, families: Collection[str]) -> None:
    """Raise `UnsupportedModelError` with the cause and the remedy if memory cannot be exact with this model."""
    config, name = hf.config, type(hf).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder; memory needs a decoder-only language model")
    text = config.get_text_config()
    if text is not config:
        raise UnsupportedModelError(
            f"{name} wraps a language model (family {text.model_type!r}) in a multimodal one; pass the language model: "
            "with torch.device('meta'): lm = AutoModelForCausalLM.from_config(model.config.get_text_config()), then "
            "lm.model, lm.lm_head = model.model.language_model, model.lm_head"
        )
    if config.model_type not in families:
        raise UnsupportedModelError(
            f"model family {config.model_type!r} ({name}) is not supported; supported: {', '.join(sorted(families))}. "
            "Adding one takes an entry in remanence/model/backbone.py that says where its layers keep their norm and "
            "their key and value projections, and sizes in tests/support/tiny.py for tests/unit/model/test_backbone.py"
        )
    if hf.get_output_embeddings() is None:
        raise UnsupportedModelError(f"{name} has no language-model head; load the model with AutoModelForCausalLM")
    if getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        raise UnsupportedModelError(
            "bidirectional attention leaves no past; set use_bidirectional_attention=False and is_causal=True"
        )
    if unknown := set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES:
        raise UnsupportedModelError(
            f"layers of type {', '.join(sorted(unknown))} in layer_types of {name} are not supported; memory knows "
            f"{', '.join(sorted(_LAYER_TYPES))}"
        )
    _require_weights(hf)


def _require_weights(hf: PreTrainedModel) -> None:
    devices = {str(parameter.device) for parameter in hf.parameters()}
    if "meta" in devices and any(hasattr(module, "_hf_hook") for module in hf.modules()):
        raise UnsupportedModelError(
            "part of the weights is offloaded to disk or host memory by device_map; load the model whole onto one "
            "device, such as device_map={'': 0}, in a smaller dtype or quantized if it does not fit"
        )
    if "meta" in devices:
        raise UnsupportedModelError(
            "the weights are on the meta device, so there are none; load them with from_pretrained first"
        )
    if len(devices) > 1:
        raise UnsupportedModelError(
            f"the weights lie on several devices ({', '.join(sorted(devices))}), and a memory on one; load the model "
            "onto one device, such as device_map={'': 0}"
        )


def rotation_of(attention: nn.Module, family: str) -> Callable[..., Any]:
    """The `apply_rotary_pos_emb` of the module that defines this attention.

    Raises:
        UnsupportedModelError: the attention is not the one of this family in transformers.
    """
    for kind in type(attention).__mro__:
        function: Callable[..., Any] | None = getattr(sys.modules.get(kind.__module__), "apply_rotary_pos_emb", None)
        if function is not None:
            return function
    raise UnsupportedModelError(
        f"{type(attention).__name__} is not the attention of family {family!r} in transformers; load the model without "
        "trust_remote_code, and without adapters that replace attention"
    )


class Fingerprint:
    """The digest of a model, made anew when a parameter was changed, replaced or moved.

    Attributes:
        stamp: differs after every change, also where the digest's sample does not.
    """

    def __init__(self) -> None:
        self.stamp, self._digest = -1, ""

    def of(self, model: nn.Module, kind: str, named: Named = nn.Module.named_parameters) -> str:
        """Of names, shapes and a sample of values; `kind` tells apart what has the same parameters.

        A quantized parameter counts by the tensors that it is packed into. Tied parameters count once.

        Args:
            named: gives the parameters that count.

        Raises:
            UnsupportedModelError: a parameter is sharded over processes, of which each sees its part only.
        """
        stamp = _stamp(model)
        if stamp != self.stamp:
            digest = hashlib.blake2b(kind.encode(), digest_size=16)
            for name, parameter in named(model):
                for stored, tensor in _stored(name, parameter):
                    flat = tensor.detach().reshape(-1)
                    sample = _numbers(flat[:: max(1, flat.numel() // _SAMPLED)]).cpu()
                    digest.update(f"{stored}{list(tensor.shape)}".encode() + sample.numpy().tobytes())
            self.stamp, self._digest = stamp, digest.hexdigest()
        return self._digest


def _stored(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    """A plain tensor by its name; of one that is packed into others, as quantized ones are, each of these."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    if hasattr(tensor, "full_tensor"):
        raise UnsupportedModelError(
            f"the parameter {name} is sharded over processes, and a memory belongs to a whole model; save the model "
            "with save_pretrained, and load it to write and read"
        )
    for part in tensor.__tensor_flatten__()[0]:
        yield from _stored(f"{name}.{part}", getattr(tensor, part))


def _numbers(sample: Tensor) -> Tensor:  # [n], any dtype -> float32
    try:
        return sample.float()
    except RuntimeError:  # numbers of less than a byte have no conversion; what they are packed into has
        return sample.view(torch.uint8).float()


def _stamp(model: nn.Module) -> int:
    """Over `model.parameters()`, which takes several times as long to walk: this is done at every prompt."""
    seen: list[tuple[int, int]] = []
    modules: list[nn.Module | None] = [model]
    while modules:
        if (module := modules.pop()) is not None:
            for parameter in module._parameters.values():
                if type(parameter) is nn.Parameter:
                    seen.append((parameter._version, parameter.data_ptr()))
                elif parameter is not None:
                    seen += [(part._version, part.data_ptr()) for part in _parts(parameter)]
            modules += module._modules.values()
    return hash(tuple(seen))


def _parts(tensor: Any) -> Iterator[Tensor]:
    """The tensors that one is packed into; itself if it is not."""
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else ()
    for name in names:
        yield from _parts(getattr(tensor, name))
    if not names:
        yield tensor


def listed(memories: Any) -> list[Any]:
    """Memories, or rows of them, as a list.

    Raises:
        InvalidInputError: there are none, or this is something else.
    """
    if not isinstance(memories, Sequence) or isinstance(memories, str):
        raise InvalidInputError(f"expected a Memory, or a list of them, got {type(memories).__name__}")
    if not memories:
        raise InvalidInputError("no memory was given")
    return list(memories)


def require_own(spec: MemorySpec, device: torch.device, memories: Sequence[Any]) -> None:
    """Raise where a memory was written by another model, or lies elsewhere."""
    for memory in memories:
        if not isinstance(memory, Memory):
            raise InvalidInputError(f"expected a Memory, or a list of them, got {type(memory).__name__}")
        spec.require(memory.spec)
        for elsewhere in memory.devices - {device}:
            raise InvalidInputError(
                f"the memory is on {elsewhere}, the model on {device}; move it with memory.to({str(device)!r})"
            )
