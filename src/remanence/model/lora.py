"""LoRA: one adapter writes, one reads, and they never act together (M+, section 3.3). Text slots need none to write."""

import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from remanence.config import LoraSettings
from remanence.errors import CheckpointError, InvalidInputError

if TYPE_CHECKING:
    from peft import LoraConfig  # takes seconds to import, and most models have no adapters

Role = Literal["write", "read"]


class Gate:
    """Where an adapter acts, as a hook on its first products, of the few numbers of its rank: it multiplies by 0 or 1.

    Attributes:
        open: `[B, T]` bool, for which tokens of which rows it acts; None: for all.
    """

    def __init__(self) -> None:
        self.open: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self.open is None:
            return None
        return output * self.open.reshape(*output.shape[:-1], 1)


class TwinLora:
    """Switches the LoRA layers of a model between two adapters, or one and the same, and none in between.

    Which adapter acts is state of the modules, so calls on one model take turns.

    Attributes:
        settings: how the adapters were made; None where they came with a published checkpoint.
        gate: where the reading adapter acts.
    """

    def __init__(
        self,
        model: nn.Module,
        write: str | None,
        read: str,
        settings: LoraSettings | None = None,
        wanted: Iterable[tuple[nn.Parameter, bool]] = (),
    ) -> None:
        """Adapters by name; `write` None: writing has none.

        `wanted`: the parameters that were there before, and whether their gradients were wanted.
        """
        from peft.tuners.lora import LoraLayer

        self.settings = settings
        self.names: dict[Role, str | None] = {"write": write, "read": read}
        self._layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self.gate = Gate()
        for layer in self._layers:
            layer.lora_A[read].register_forward_hook(self.gate)
        self._wanted = list(wanted)
        self._lock = threading.RLock()
        self.role: Role | None = None  # of the call that runs
        self._on: Role | None = None
        self._switch(None)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock())

    @contextmanager
    def active(self, role: Role | None) -> Iterator[None]:
        with self._lock:
            outer, self.role = self.role, role
            gate, self.gate.open = self.gate.open, None
            self.turn_to(role)
            try:
                yield
            finally:
                self.role, self.gate.open = outer, gate
                self.turn_to(outer)

    def unload(self, model: nn.Module) -> None:
        """Take the adapters out of a model again: stock layers, and gradients wanted where they were."""
        for name, module in list(model.named_modules()):
            if any(module is layer for layer in self._layers):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.base_layer)
        for parameter, wanted in self._wanted:
            parameter.requires_grad_(wanted)
        if hasattr(model, "peft_config"):
            del model.peft_config
        self._layers, self._wanted = [], []

    def turn_to(self, role: Role | None) -> None:
        """Let this role's adapter act (None: none), also where a backward pass runs layers of an earlier call again."""
        if role != self._on:
            self._switch(role)

    def _switch(self, role: Role | None) -> None:
        """What peft's `set_adapter` and `enable_adapters` do, but for `requires_grad`. They set it anew in every layer,
        which takes longer than a short prompt, and is the trainer's to decide."""
        self._on = role
        name = None if role is None else self.names[role]
        for layer in self._layers:
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]


def without_twins(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters by name, as they are without the adapters that `new_lora` makes."""
    for name, parameter in model.named_parameters():
        if ".lora_" not in name or name.split(".")[-2] not in (WRITE, READ):
            yield name.replace(".base_layer.", "."), parameter


def adapter_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of the adapters, by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if ".lora_" in name)


WRITE, READ = "writer", "reader"
NOT_ADAPTED = {"o_proj", "dense"}


def new_lora(model: nn.Module, settings: LoraSettings, *, writes: bool) -> TwinLora:
    """Give a decoder fresh adapters, one for reading and one for writing if it `writes`. They change nothing until they
    are trained.

    Raises:
        InvalidInputError: no linear layer has one of the names, or the decoder has adapters already.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise InvalidInputError(
            "the model has LoRA adapters already, which would not act while those for writing and reading do; fold "
            "them into the weights with merge_and_unload() first, or leave out lora="
        )
    linears = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in f".{name}"
    }
    targets = set(settings.target_modules or linears - NOT_ADAPTED)
    if not targets <= linears:
        wrong = ", ".join(sorted(targets - linears))
        raise InvalidInputError(f"no linear layer is named {wrong}; there are {', '.join(sorted(linears))}")
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    names = [WRITE, READ] if writes else [READ]
    _inject(model, LoraConfig(**{**asdict(settings), "target_modules": sorted(targets)}), names)
    return TwinLora(model, WRITE if writes else None, READ, settings, wanted)


def _inject(model: nn.Module, config: "LoraConfig", names: Iterable[str]) -> None:
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two adapters are meant
        for name in names:
            inject_adapter_in_model(config, model, adapter_name=name)


def add_twin_lora(
    model: nn.Module, settings: Mapping[str, Any], weights: Mapping[str, Tensor], write: str, read: str
) -> TwinLora:
    """Put published LoRA weights (`<module>.lora_A.<adapter>.weight`) onto a model.

    Raises:
        CheckpointError: an adapter's weights are missing or do not fit.
    """
    from peft import LoraConfig

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
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    _inject(model, config, dict.fromkeys([write, read]))
    held = dict(adapter_parameters(model))
    if missing := sorted(set(held) ^ set(weights)):
        raise CheckpointError(f"LoRA weights do not match the model, first at {missing[0]}")
    for name, parameter in held.items():
        if parameter.shape != weights[name].shape:
            raise CheckpointError(f"{name} has shape {list(weights[name].shape)}, expected {list(parameter.shape)}")
        parameter.data = weights[name].to(parameter)
    return TwinLora(model, write, read, wanted=wanted)
