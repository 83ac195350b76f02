"""A decoder with all that memory takes, before anything is written or read."""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remanence.config import LoraSettings, MemoryConfig
from remanence.errors import InvalidInputError
from remanence.kernels.optimize import optimize_for_cpu, restore_stock
from remanence.memory.memory import Memory
from remanence.memory.spec import KEYS_BY, MemorySpec
from remanence.model import hooks
from remanence.model.backbone import Backbone
from remanence.model.chat import Texts
from remanence.model.inputs import padding_id
from remanence.model.lora import Role, TwinLora, new_lora, without_twins
from remanence.model.prefix_store import PrefixStore
from remanence.model.retriever import Retriever, TokenRetriever, new_retriever
from remanence.model.validation import Fingerprint, listed, require_own

Memories = Memory | Sequence[Memory | Sequence[Memory]]  # of a call: one, or one or several for each row
LATENT = "standardised mean 1"  # what a text memory's latent vectors are; another way to make them, another name
_DEPTH = 0.8  # of the layer whose input is averaged


class MemoryDecoder(nn.Module):
    """A stock transformers decoder, hooked, with the parameters by which it writes and reads memories.

    Attributes:
        hf: the decoder, unchanged but for hooks.
        config: how it writes and reads.
        bos_embedding: `[L, 1, d]` or None, a learned vector in front of every layer's prefix (learned).
        new_memory_positional_emb: `[1, 1, d]`, added to the last K inputs of every layer while writing (learned).
        retriever: finds what matters for a prompt in long-term memory; None for a model whose memory is a pool only.
        token_retriever: finds chunks of text memories, beside their words; None where none was trained.
        name: what the model is called, for people to read.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: Any = None,
        config: MemoryConfig | None = None,
        *,
        adapters: TwinLora | None = None,
        retriever: Retriever | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.config = MemoryConfig() if config is None else config
        self.backbone = Backbone(hf)
        self.given, self.hf, self.tokenizer = [hf], self.backbone.hf, tokenizer
        self.texts = Texts(tokenizer, getattr(self.hf.config, "bos_token_id", None), self.vocabulary)
        self.name = name or getattr(self.hf.config, "_name_or_path", "") or type(self.hf).__name__
        self.adapters, self.retriever = adapters, retriever
        self.token_retriever: TokenRetriever | None = None
        if (self.config.longterm is None) != (retriever is None):
            raise InvalidInputError("long-term memory takes a config and a retriever; give both or neither")
        layers, size = len(self.backbone.layers), self.hf.config.hidden_size
        like: dict[str, Any] = {"dtype": self.backbone.dtype, "device": self.backbone.device}
        learned, bos = self.config.writer == "learned", self.config.bos
        self.bos_embedding = nn.Parameter(torch.zeros(layers, 1, size, **like)) if learned and bos else None
        self.new_memory_positional_emb = nn.Parameter(torch.zeros(1, 1, size, **like)) if learned else None
        self.register_buffer("shipped_pool", None)  # [L, N, d], what a new memory starts with
        self.shipped_pool: Tensor | None
        self._fingerprint = Fingerprint()
        self.prefixes = PrefixStore()
        self._warned = False
        self.lock = threading.RLock()
        self._bos: dict[Role, tuple[int, list[tuple[Tensor, Tensor]]]] = {}
        family = self.backbone.family
        self._attached: Any = hooks.install(self.backbone.decoder, family.attention, family.cache)
        if adapters is not None:
            hooks.remove_too(self.backbone.decoder, adapters, self.hf)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.lock = threading.RLock()

    @classmethod
    def attach(
        cls, hf_model: PreTrainedModel, tokenizer: Any = None, config: MemoryConfig | None = None, **overrides: Any
    ) -> Self:
        """Give any supported decoder a memory.

        By default a memory of text slots, which works at once and changes nothing where it has nothing to say. A
        learned writer has to be trained first (`remanence train`).

        Args:
            config: how to write and read.
            overrides: settings of `MemoryConfig` by name, and `min_score` of its retrieval. With `slots_per_write` and
                no config, the writer is a learned one.

        Raises:
            UnsupportedModelError: the family or a setting of it is not supported; says what that takes.
            InvalidInputError: a setting does not fit.
        """
        config = MemoryConfig.of(config, **overrides)
        hf = Backbone(hf_model).hf
        longterm = config.longterm
        retriever = None if longterm is None else new_retriever(hf, longterm.key_size, longterm.key_layers)
        adapters = None if config.lora is None else new_lora(hf, config.lora, writes=config.writer == "learned")
        model = cls(hf_model, tokenizer, config, adapters=adapters, retriever=retriever)
        if model.bos_embedding is not None:
            nn.init.normal_(model.bos_embedding, std=getattr(hf.config, "initializer_range", 0.02))
        return model.eval()

    def detach(self) -> PreTrainedModel:
        """Give the stock model back, bit for bit: no hooks, no adapters of ours, stock kernels.

        This model, and every other that shares the decoder, cannot be used any more; memories stay readable by a model
        that is attached again.

        Raises:
            InvalidInputError: a layer was made into something else since, such as by Grass; nothing is undone then.
        """
        with self.lock:
            if hooks.installed(self.backbone.decoder) is self._attached:
                restore_stock(self.hf)
                hooks.remove(self.backbone.decoder)
        given: PreTrainedModel = self.given[0]
        return given

    def rows_of(self, memory: Memories) -> list[list[Memory]]:
        """The memories of each row of a call, checked to be this model's.

        Raises:
            InvalidInputError, MemoryMismatchError: the model was detached, or a memory does not fit.
        """
        self.require_attached()
        given = [memory] if isinstance(memory, Memory) else listed(memory)
        rows = [[row] if isinstance(row, Memory) else listed(row) for row in given]
        spec = self.spec
        for row in rows:
            require_own(spec, self.device, row)
            if len({id(each) for each in row}) < len(row):
                raise InvalidInputError("the same memory was given twice in one row; it is read once")
            if len(row) > 1 and self.config.writer == "learned":
                raise InvalidInputError("a row reads one learned memory; several can be read as text slots")
        return rows

    def require_attached(self) -> None:
        """Raise where the decoder has hooks no more, or those of models that were attached since."""
        if hooks.installed(self.backbone.decoder) is not self._attached:
            raise InvalidInputError("this model was detached; attach a memory to the decoder again")

    def warn_untrained(self) -> None:
        """Warn once if the writer is a learned one that was never trained."""
        if not self._warned and not self.trained:
            self._warned = True
            warnings.warn(
                "the learned writer of this model was never trained: what it writes cannot be recalled, and reading it "
                "does harm. Train it (remanence train), or attach text slots: MemoryModel.attach(hf_model, tokenizer)",
                stacklevel=3,
            )

    def extra_repr(self) -> str:
        trained = "" if self.trained else ", not trained"
        return f"name={self.name!r}, writer={self.config.writer!r}{trained}"

    def with_longterm(
        self,
        rules: Any,
        *,
        slots: int | None = None,
        retrieval_size: int | None = None,
        lora: LoraSettings | None = None,
    ) -> Self:
        """This model with an untrained retriever, and untrained adapters if `lora` says so, to be trained next.

        It takes the decoder over, with the adapters that it has: use this model no more. New memories start with
        nothing written.

        Args:
            rules: a `LongTermConfig`.
            slots: N from now on; None: as it is. Published: fewer by those that are retrieved.

        Raises:
            InvalidInputError: the model has a retriever already, or adapters and `lora` asks for more.
        """
        if self.retriever is not None or (self.adapters is not None and lora is not None):
            raise InvalidInputError("this model has a retriever or adapters already; start from one that has neither")
        config = MemoryConfig.of(self.config, longterm=rules, retrieval_size=retrieval_size)
        config = config.replace(slots=self.config.slots if slots is None else slots, lora=lora or self.config.lora)
        assert config.longterm is not None
        model = type(self)(
            self.hf,
            self.tokenizer,
            config,
            adapters=self.adapters if lora is None else new_lora(self.hf, lora, writes=True),
            retriever=new_retriever(self.hf, config.longterm.key_size, config.longterm.key_layers),
            name=self.name,
        )
        model.given = self.given
        with torch.no_grad():
            for name in ("new_memory_positional_emb", "bos_embedding"):
                if getattr(self, name) is not None:
                    getattr(model, name).copy_(getattr(self, name))
        return model.eval()

    @property
    def trained(self) -> bool:
        """Whether the writer was ever trained; text slots need no training."""
        positional = self.new_memory_positional_emb
        return positional is None or bool(positional.any())

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
        hooks.checkpoint_layers(self.backbone.decoder, self.backbone.family.cache, self.adapters)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        """The same by its older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **settings)

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def vocabulary(self) -> int:
        return int(self.backbone.hf.get_input_embeddings().num_embeddings)

    @property
    def positions(self) -> int | None:
        """Positions that the decoder can read, stretched rotations counted; None: it does not say."""
        return self.backbone.positions

    def longest_chunk(self, front: int) -> int:
        """Most tokens of a chunk that is encoded behind so many entries.

        Raises:
            InvalidInputError: the decoder reads too few positions for one.
        """
        left = self.config.chunk_tokens if self.positions is None else self.positions - front
        if left < 1:
            taken = f"{self.name} reads {self.positions} positions, of which a write takes {front} in front of a chunk"
            raise InvalidInputError(taken)
        return min(self.config.chunk_tokens, left)

    @property
    def slots(self) -> int:
        """N of a learned memory."""
        return self.config.slots or 0

    @property
    def slots_per_write(self) -> int:
        """K of a learned memory."""
        return self.config.slots_per_write or 0

    @property
    def spec(self) -> MemorySpec:
        """What a memory must agree on to be read by this model."""
        backbone, learned = self.backbone, self.config.writer == "learned"
        size = 0 if self.retriever is None else self.retriever.size
        keys_by = "" if self.token_retriever is None else KEYS_BY + self.token_retriever.name
        return MemorySpec(
            layers=len(backbone.layers),
            slots=self.slots if learned else 0,
            slots_per_write=self.slots_per_write,
            hidden_size=backbone.config.hidden_size,
            kv_heads=backbone.kv_heads,
            head_dim=backbone.head_dim,
            dtype=str(backbone.dtype).removeprefix("torch."),
            shared_eviction=self.config.shared_eviction,
            model=self.fingerprint(),
            retrieval_size=size if learned else int(backbone.config.hidden_size),
            writer=self.config.writer,
            retrieval="" if learned else LATENT + keys_by,
        )

    def use_token_retriever(self, retriever: TokenRetriever | None) -> None:
        """Find chunks by this retriever from now on, or by none. Keys that another made are made anew when needed.

        Raises:
            InvalidInputError: it was trained for another decoder, or the memories are learned ones.
        """
        if retriever is not None:
            if self.config.writer == "learned":
                raise InvalidInputError("this retriever finds chunks of text memories; a learned memory has none")
            retriever.require(len(self.backbone.layers), 2 * self.backbone.kv_heads * self.backbone.head_dim)
            retriever = retriever.to(self.device)
        self.token_retriever = retriever

    @property
    def parts(self) -> tuple[str, ...]:
        """The trained parts for text slots that are on: "reader", "retriever"."""
        reads = self.config.writer == "text" and self.adapters is not None
        there = {"reader": reads, "retriever": self.token_retriever is not None}
        return tuple(part for part, on in there.items() if on)

    @property
    def latent_layer(self) -> int:
        """The layer whose input makes up the latent vector of a chunk."""
        count = len(self.backbone.layers)
        return min(count - 1, round(_DEPTH * count))

    def fingerprint(self) -> str:
        """A digest of what makes slots, by a sample of the parameters' values; made anew when one changed.

        Of a learned writer all parameters count, of a text writer the decoder's own, without adapters.
        """
        if self.config.writer == "learned":
            return self._fingerprint.of(self, self.hf.config.model_type)
        return self._fingerprint.of(self.hf, "text", without_twins)

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
        """Key (turned) and value `[1, H, D]` of the bos slot in each layer, as a role sees them; made once.

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
            turned = [
                self.backbone.rotate(layer, keys, *(part[0] for part in rotary(layer)))
                for layer, (keys, _) in enumerate(made)
            ]
            made = [(keys, values) for keys, (_, values) in zip(turned, made, strict=True)]
            known = self._bos[role] = (made_for, made)
        return known[1]

    def optimize_for_cpu(self) -> Self:
        """Swap in kernels that are faster in float32 on a CPU; `detach` swaps them out. Elsewhere nothing changes.

        Weights are kept once more, as oneDNN multiplies them. One that was trained, loaded or moved since is multiplied
        as it stands, and packed by the next call.
        """
        if optimize_for_cpu(self.hf):
            self._bos.clear()  # its keys and values were made by other kernels
        return self

    @contextmanager
    def role(self, role: Role | None) -> Iterator[None]:
        """Write or read with the adapter that belongs to it, where the model has LoRA; outside of it none acts."""
        if self.adapters is None:
            yield
        else:
            with self.lock, self.adapters.active(role):
                yield

    @contextmanager
    def stock(self) -> Iterator[None]:
        """A scope in which the decoder is the stock one, also in the middle of a call that reads a memory."""
        with self.role(None), hooks.expecting(None):
            yield

    @property
    def pad(self) -> int:
        """The id that fills up short rows; what it is does not matter, it is masked."""
        return padding_id(self.tokenizer, self.hf.generation_config)
