"""A decoder with all that memory takes, before anything is written or read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remanence.errors import InvalidInputError
from remanence.memory import LongTermRules, MemorySpec
from remanence.model.activations import checkpoint_layers
from remanence.model.adapters import LoraSettings, Role, TwinLora, new_twin_lora
from remanence.model.attention import share_heads
from remanence.model.backbone import Backbone
from remanence.model.checks import integer
from remanence.model.encoder import install_hooks
from remanence.model.fingerprint import Fingerprint
from remanence.model.inputs import padding_id
from remanence.model.last_layer import narrow_last_layer
from remanence.model.linear import pack, use_onednn
from remanence.model.prefix import mask_each_step, show_prefix_to_sliding_layers
from remanence.model.retriever import Retriever, install_retrieval, new_retriever
from remanence.model.spare import Spare

if TYPE_CHECKING:
    from remanence.model.shipped import ShippedLongTerm


class MemoryDecoder(nn.Module):
    """A stock transformers decoder, hooked, with the parameters by which it writes and reads memories.

    `MemoryModel` is this with the acts themselves.

    Attributes:
        hf: the decoder, unchanged but for hooks and for how its attention and linear layers compute on a CPU.
        bos_embedding: `[L, 1, d]` or None, a learned vector in front of every layer's prefix.
        new_memory_positional_emb: `[1, 1, d]`, added to the last K inputs of every layer while writing.
        retriever: finds what matters for a prompt in long-term memory; None for a model whose memory is a pool only.
        longterm: how long-term memory is read and what it drops; None with no retriever.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: Any = None,
        *,
        slots: int,
        slots_per_write: int,
        bos: bool = True,
        eviction: Literal["per_layer", "shared"] = "per_layer",
        keep_hidden: bool = False,
        adapters: TwinLora | None = None,
        longterm: LongTermRules | None = None,
        retriever: Retriever | None = None,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(hf)
        hf = self.backbone.hf
        self.hf, self.tokenizer = hf, tokenizer
        self.slots, self.slots_per_write = integer("slots", slots), integer("slots_per_write", slots_per_write)
        if eviction not in ("per_layer", "shared"):
            raise InvalidInputError(f"eviction must be 'per_layer' or 'shared', got {eviction!r}")
        self.eviction, self.keep_hidden, self.adapters = eviction, keep_hidden, adapters
        layers, size = len(self.backbone.layers), hf.config.hidden_size
        like: dict[str, Any] = {"dtype": self.backbone.dtype, "device": self.backbone.device}
        self.bos_embedding = nn.Parameter(torch.zeros(layers, 1, size, **like)) if bos else None
        self.new_memory_positional_emb = nn.Parameter(torch.zeros(1, 1, size, **like))
        self.register_buffer("shipped_pool", None)  # [L, N, d], what a new memory starts with
        self.shipped_pool: Tensor | None
        if (longterm is None) != (retriever is None):
            raise InvalidInputError("long-term memory takes rules and a retriever; give both or neither")
        self.longterm, self.retriever = longterm, retriever
        self.shipped_longterm: ShippedLongTerm | None = None
        self._fingerprint = Fingerprint()
        self.spare = Spare()
        self._bos: dict[Role, tuple[int, list[tuple[Tensor, Tensor]]]] = {}
        _ = self.spec  # raises on bad sizes before anything is hooked
        share_heads(hf)
        use_onednn(hf)
        install_hooks(self.backbone)
        install_retrieval(self.backbone)
        mask_each_step(self.backbone)
        show_prefix_to_sliding_layers(self.backbone)
        narrow_last_layer(self.backbone)

    @classmethod
    def attach(cls, hf_model: PreTrainedModel, tokenizer: Any = None, **settings: Any) -> Self:
        """Give any supported decoder an untrained memory.

        Writing and reading work at once; to recall what was written, the model has to be trained (`remanence train`).

        Args:
            slots: N, slots in each layer's pool.
            slots_per_write: K, a divisor of N.
            bos: prepend a learned slot to every layer's prefix.
            eviction: "per_layer" draws for each layer, "shared" once for all.
            keep_hidden: keep slots in hidden form too, for inspection.
            longterm: what a memory keeps of the slots that its pool evicts; None: nothing.
            retrieval_size: of the retriever's queries and keys; None: 256, or a sixteenth of d if that is more.
            lora: give writing and reading an adapter each (`LoraSettings`); None: neither.

        Raises:
            UnsupportedModelError: the family is unknown, or something about the model leaves no room for memory; says
                what it takes.
            InvalidInputError: K > N, N is not a multiple of K, or a size is no integer.
        """
        hf_model = Backbone(hf_model).hf  # refuses before adapters are put in
        size, lora = settings.pop("retrieval_size", None), settings.pop("lora", None)
        if size is not None:
            size = integer("retrieval_size", size)
        if settings.get("longterm") is not None:
            settings["retriever"] = new_retriever(hf_model, size)
        if lora is not None:
            settings["adapters"] = new_twin_lora(hf_model, lora)
        model = cls(hf_model, tokenizer, **settings)
        if model.bos_embedding is not None:
            nn.init.normal_(model.bos_embedding, std=getattr(hf_model.config, "initializer_range", 0.02))
        return model.eval()

    def with_longterm(
        self,
        rules: LongTermRules,
        *,
        slots: int | None = None,
        retrieval_size: int | None = None,
        lora: LoraSettings | None = None,
    ) -> Self:
        """This model with an untrained retriever, and untrained adapters if `lora` says so, to be trained next.

        It takes the decoder over, with the adapters that it has: use this model no more. New memories start with
        nothing written.

        Args:
            slots: N from now on; None: as it is. Published: fewer by those that are retrieved.

        Raises:
            InvalidInputError: the model has a retriever already, or adapters and `lora` asks for more.
        """
        if self.retriever is not None or (self.adapters is not None and lora is not None):
            raise InvalidInputError("this model has a retriever or adapters already; start from one that has neither")
        settings: dict[str, Any] = {"lora": lora} if self.adapters is None else {"adapters": self.adapters}
        model = self.attach(
            self.hf,
            self.tokenizer,
            slots=self.slots if slots is None else slots,
            slots_per_write=self.slots_per_write,
            bos=self.bos_embedding is not None,
            eviction=self.eviction,
            keep_hidden=self.keep_hidden,
            longterm=rules,
            retrieval_size=retrieval_size,
            **settings,
        )
        with torch.no_grad():
            model.new_memory_positional_emb.copy_(self.new_memory_positional_emb)
            if self.bos_embedding is not None and model.bos_embedding is not None:
                model.bos_embedding.copy_(self.bos_embedding)
        return model

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(self, *args)`. What wraps a model, such as `DistributedDataParallel`, sees only what goes through
        here; a training step does."""
        return function(self, *args)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """What the Trainer calls for `gradient_checkpointing=True`: layers keep their input, and run again in the
        backward pass, behind the same memory.

        Raises:
            InvalidInputError: another kind of checkpointing is asked for.
        """
        asked = {**(activation_checkpointing_kwargs or {}), "every_n_layers": every_n_layers, "offload": offload}
        if unknown := asked.items() - {"use_reentrant": False, "every_n_layers": 1, "offload": False}.items():
            raise InvalidInputError(
                f"activation checkpointing with memory runs every layer again, without re-entering autograd; leave out "
                f"{', '.join(sorted(f'{name}={value}' for name, value in unknown))}"
            )
        checkpoint_layers(self.backbone, self.adapters)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        """The same by its older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **settings)

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def spec(self) -> MemorySpec:
        """What a memory must agree on to be read by this model."""
        backbone = self.backbone
        return MemorySpec(
            layers=len(backbone.layers),
            slots=self.slots,
            slots_per_write=self.slots_per_write,
            hidden_size=backbone.config.hidden_size,
            kv_heads=backbone.kv_heads,
            head_dim=backbone.head_dim,
            dtype=str(backbone.dtype).removeprefix("torch."),
            shared_eviction=self.eviction == "shared",
            model=self.fingerprint(),
            retrieval_size=0 if self.retriever is None else self.retriever.size,
        )

    def fingerprint(self) -> str:
        """A digest of the parameters' names, shapes and a sample of their values; made anew when one changed."""
        return self._fingerprint.of(self, self.hf.config.model_type)

    def stamp(self) -> int:
        """Differs after every change of a parameter, within this process."""
        self.fingerprint()
        return self._fingerprint.stamp

    @property
    def last_stamp(self) -> int:
        """`stamp` as it was last made, which every read and write begins with: it walks through all parameters."""
        return self._fingerprint.stamp

    @torch.inference_mode(False)
    @torch.no_grad()
    def bos_slots(self, role: Role = "read", *, stamp: int | None = None) -> list[tuple[Tensor, Tensor]] | None:
        """Key (rotated) and value `[1, H, D]` of the bos slot in each layer, as a role sees them; made once.

        `stamp`: of the parameters, where it is known.
        """
        if self.bos_embedding is None:
            return None
        made_for = self.stamp() if stamp is None else stamp
        known = self._bos.get(role)
        if known is None or known[0] != made_for:
            with self.role(role), torch.autocast(self.device.type, enabled=False):
                made = [self.backbone.project(layer, bos) for layer, bos in enumerate(self.bos_embedding)]
            rotary = self.backbone.rotary(torch.zeros(1, 1, device=self.device), self.bos_embedding[0, :, :0])
            for layer, (keys, values) in enumerate(made):
                cos, sin = rotary(layer)
                made[layer] = self.backbone.rotate(layer, keys, cos[0], sin[0]), values
            known = self._bos[role] = (made_for, made)
        return known[1]

    def pack(self) -> Self:
        """Keep the weights of linear layers once more, as oneDNN multiplies them: faster in float32 on a CPU.

        It takes their memory again, and nothing else: a weight that was trained, loaded or moved since is multiplied
        as it stands, and packed by the next call. Only what is written through `parameter.data` goes unseen, as peft's
        `merge` writes; call `pack` after it.

        Raises:
            InvalidInputError: no weight is float32 on a CPU, or this torch has no oneDNN.
        """
        if not pack(self.hf):
            raise InvalidInputError(
                "there is nothing to pack: that is for float32 weights on a CPU, and these are "
                f"{self.backbone.dtype} on {self.device} (oneDNN available: {torch.backends.mkldnn.is_available()})"
            )
        return self

    @contextmanager
    def role(self, role: Role) -> Iterator[None]:
        """Write or read with the adapter that belongs to it, where the model has LoRA."""
        if self.adapters is None:
            yield
        else:
            with self.adapters.active(role):
                yield

    @property
    def pad(self) -> int:
        """The id that fills up short rows; what it is does not matter, it is masked."""
        return padding_id(self.tokenizer, self.hf.generation_config)
