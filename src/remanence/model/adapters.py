"""Twin LoRA: one adapter writes, one reads, and they never act together (M+, section 3.3)."""

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from remanence.errors import CheckpointError

Role = Literal["write", "read"]


class TwinLora:
    """Switches the LoRA layers of a model between two adapters, or keeps one on where there is only one.

    The active adapter is state of the modules, so calls on one model take turns.
    """

    def __init__(self, model: nn.Module, write: str, read: str) -> None:
        self.names: dict[Role, str] = {"write": write, "read": read}
        self._layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self._lock = threading.RLock()

    @contextmanager
    def active(self, role: Role) -> Iterator[None]:
        with self._lock:
            for layer in self._layers:
                trained = [(p, p.requires_grad) for p in layer.parameters()]
                layer.set_adapter(self.names[role])
                for parameter, requires_grad in trained:
                    parameter.requires_grad_(requires_grad)
            yield


def add_twin_lora(
    model: nn.Module, settings: Mapping[str, Any], weights: Mapping[str, Tensor], write: str, read: str
) -> TwinLora:
    """Put published LoRA weights (`<module>.lora_A.<adapter>.weight`) onto a model.

    Raises:
        CheckpointError: an adapter's weights are missing or do not fit.
    """
    targets = {name.split(".lora_A.")[0] for name in weights if ".lora_A." in name}
    if not targets:
        raise CheckpointError("config.json has a lora_config, but the checkpoint holds no LoRA weights")
    shapes = {name: tensor.shape[0] for name, tensor in weights.items() if ".lora_A." in name}
    config = LoraConfig(
        r=int(settings.get("r") or next(iter(shapes.values()))),
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings.get("lora_dropout", 0.0),
        target_modules=sorted(targets),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two adapters are meant
        for adapter in dict.fromkeys([write, read]):
            inject_adapter_in_model(config, model, adapter_name=adapter)
    held = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    if missing := sorted(set(held) ^ set(weights)):
        raise CheckpointError(f"LoRA weights do not match the model, first at {missing[0]}")
    for name, parameter in held.items():
        if parameter.shape != weights[name].shape:
            raise CheckpointError(f"{name} has shape {list(weights[name].shape)}, expected {list(parameter.shape)}")
        parameter.data = weights[name].to(parameter)
    return TwinLora(model, write, read)
