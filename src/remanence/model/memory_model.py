"""MemoryModel: a function that writes and reads memories."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from remanence.errors import InvalidInputError
from remanence.memory import LongTerm, LongTermRules, Memory, MemorySpec, Receipt, Storage
from remanence.model.activations import checkpoint_layers
from remanence.model.adapters import LoraSettings, Role, TwinLora, new_twin_lora
from remanence.model.attention import share_heads
from remanence.model.checks import integer, require_own, require_slots, rows_of
from remanence.model.encoder import install_hooks
from remanence.model.families import Backbone
from remanence.model.fingerprint import Fingerprint
from remanence.model.generation import generate, prefix_for, prepare, require_finite
from remanence.model.inputs import Content, left_padded, padding_id
from remanence.model.last_layer import narrow_last_layer
from remanence.model.linear import pack, use_onednn
from remanence.model.prefix import (
    mask_each_step,
    pool_with_pending,
    show_prefix_to_sliding_layers,
)
from remanence.model.retriever import Retriever, install_retrieval, new_retriever
from remanence.model.rotation import rotate
from remanence.model.shipped import ShippedLongTerm, memory_of, new_longterm
from remanence.model.spare import Spare
from remanence.model.writing import Progress, encode_rows, projected, put, write_rows


class MemoryModel(nn.Module):
    """A stock transformers decoder with what it needs to write and read memories.

    Make one with `from_pretrained` or `attach`. It holds no memory itself: memories are values, made by `new_memory`.

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
        self.hf, self.tokenizer = hf, tokenizer
        self.backbone = Backbone(hf)
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
            UnsupportedModelError: the family is unknown; says what adding it takes.
            InvalidInputError: K > N, N is not a multiple of K, or a size is no integer.
        """
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

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str],
        *,
        keep_hidden: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        attn_implementation: str | None = None,
        bfloat16_rotary: bool = False,
    ) -> "MemoryModel":
        """Load a directory made by `save_pretrained`, a published checkpoint (detected), or one from the hub.

        Args:
            bfloat16_rotary: round the rotary frequencies to bfloat16. The published usage casts the whole model, and
                with it these; its answers at long prefixes come back only so, and are the worse for it.

        Raises:
            FileNotFoundError, CheckpointError: something is missing, and what.
        """
        from remanence.model.checkpoint import load, round_rotary

        model = load(
            path_or_hub_id, keep_hidden=keep_hidden, dtype=dtype, attn_implementation=attn_implementation
        ).eval()
        if bfloat16_rotary:
            round_rotary(model.hf)
        return model if device is None else model.to(device)

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

    def save_pretrained(self, path: str | os.PathLike[str], *, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write the decoder, its tokenizer and the memory's parameters; `from_pretrained` reads them back.

        `state_dict`: what to write in place of the model's own, of which a sharded model holds parts only.
        """
        from remanence.model.checkpoint import save

        save(self, Path(path), state_dict)

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
            turned = [rotate(keys, *(part[0] for part in rotary(layer))) for layer, (keys, _) in enumerate(made)]
            made = [(keys, values) for keys, (_, values) in zip(turned, made, strict=True)]
            known = self._bos[role] = (made_for, made)
        return known[1]

    def pack(self) -> "MemoryModel":
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

    def new_memory(
        self, seed: int = 0, *, longterm: bool = True, capacity: int | None = None, storage: Storage | None = None
    ) -> Memory:
        """A memory as the checkpoint ships it: with the pool it was trained with, or never written.

        `seed` sets who is evicted; the same writes into two memories of one seed give the same memory, bit for bit.

        Args:
            longterm: keep what the pool evicts, where the model has a retriever.
            capacity: M, the most long-term slots per layer; None: as the model says.
            storage: where long-term slots lie, and whether as int8; None: in host memory, as they are.

        Raises:
            InvalidInputError: `seed` or `capacity` is no integer, the capacity too small, `storage` no `Storage`.
        """
        seed = integer("seed", seed)
        kept = new_longterm(self, capacity, Storage() if storage is None else storage) if longterm else None
        if self.shipped_pool is None:
            return Memory(self.spec, seed=seed, keep_hidden=self.keep_hidden, longterm=kept)
        return self.memory_from_slots(self.shipped_pool, seed, longterm=kept)

    @torch.inference_mode(False)
    @torch.no_grad()
    def memory_from_slots(self, hidden: Tensor, seed: int = 0, *, longterm: LongTerm | None = None) -> Memory:
        """A memory whose pool holds these slots in hidden form, `[L, N, d]`, oldest first.

        Raises:
            InvalidInputError: wrong shape or dtype.
        """
        return memory_of(self, hidden, seed, longterm)

    @overload
    def write(
        self, memory: Memory, content: Content, *, evict: Tensor | None = None, progress: Progress | None = None
    ) -> Receipt: ...

    @overload
    def write(
        self,
        memory: Sequence[Memory],
        content: Sequence[Content] | Tensor,
        *,
        evict: Tensor | None = None,
        progress: Progress | None = None,
    ) -> list[Receipt]: ...

    @torch.inference_mode(False)
    @torch.no_grad()
    def write(
        self,
        memory: Memory | Sequence[Memory],
        content: Any,
        *,
        evict: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Receipt | list[Receipt]:
        """Write a text into a memory, in place: whole, or not at all.

        Long text is cut into chunks of at most 512 tokens, one write each. Given lists, row i goes to memory i, and the
        rows do not touch each other.

        Args:
            content: text, ids `[T]`; for several memories a list of these, or ids `[B, T]`.
            evict: replay, for one memory and one chunk: ranks `[L, K]` to evict (0 = oldest) instead of drawing them.
            progress: called with (chunks done, chunks in all).

        Raises:
            InvalidInputError: empty text, ids outside the vocabulary, wrong dtype, shape or device.
            MemoryMismatchError: another model's memory.
            CorruptMemoryError: the memory or the model holds numbers that are not finite.
        """
        memories, rows = rows_of(self, memory, content)
        prefix_kept = len(memories) == 1 and self.spare.holds(memories[0].pool_or_none)
        receipts = write_rows(self, memories, rows, evict, progress)
        if prefix_kept:
            prepare(self, memories[0])
        return receipts[0] if isinstance(memory, Memory) else receipts

    @torch.inference_mode(False)
    @torch.no_grad()
    def encode(self, memory: Memory, content: Content, *, after: Tensor | None = None) -> Tensor:  # [L, min(n, K), d]
        """The slots that a write would make, without writing them; `after` stands for the K newest slots."""
        _, rows = rows_of(self, memory, content)
        newest = memory.newest if after is None else require_slots(self, after)[:, -self.slots_per_write :]
        return encode_rows(self, rows, [newest if memory.written else None])[0]

    @torch.inference_mode(False)
    @torch.no_grad()
    def update(
        self,
        memory: Memory,
        slots: Tensor | Sequence[Tensor],
        *,
        tokens: int = 0,
        evict: Tensor | None = None,
        ages: Tensor | None = None,
        passed: tuple[Tensor, Tensor] | None = None,
    ) -> Receipt:
        """Put encoded slots `[L, q, d]` (several: joined in this order) into the pool as one write of q slots.

        Args:
            ages: `[L, q]`, what these slots count as their ages when they are evicted; None: q - 1, ..., 1, 0.
            passed: slots `[L, r, d]` that go straight to long-term memory, and their ages `[L, r]`; takes `ages`.
        """
        require_own(self, memory)
        return put(self, memory, slots, tokens, evict, ages, passed)

    @torch.inference_mode(False)
    @torch.no_grad()
    def read(
        self,
        memory: Memory | Sequence[Memory],
        content: Any,
        *,
        pending: Tensor | Sequence[Tensor] | None = None,
        sampled: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One forward pass over a prompt with memory as attention prefix: `out.logits` `[B, T, V]`. Changes nothing.

        Rows of different length are padded on the left; their logits are right-aligned.

        Args:
            pending: encoded slots `[L, q, d]` that are not in the pool, read behind it (one memory only).
            sampled: ranks `[L, N - q]` of the pool slots to read in front of `pending`. None reads `pending` alone,
                with the writing adapter.
            kwargs: passed to the decoder's forward, e.g. `logits_to_keep=1`, `output_attentions=True`.

        Raises:
            InvalidInputError, MemoryMismatchError, CorruptMemoryError: as for `write`.
        """
        memories, rows = rows_of(self, memory, content)
        role: Role = "read"
        pools = [m.pool_or_none for m in memories]
        longterms = [m.longterm for m in memories]
        if pending is not None and memories[0].written:
            if len(memories) > 1:
                raise InvalidInputError("pending= takes one memory")
            role = "write" if sampled is None else "read"
            hidden = require_slots(self, pending)
            new = projected(self, hidden[None], [0], role)[0]
            pools = [pool_with_pending(memories[0].pool, new, sampled)]
            longterms = longterms if sampled is not None else [None]
        ids, mask = left_padded(rows, self.pad)
        with self.role(role):
            cache = prefix_for(self, pools, longterms, room=0, role=role, stamp=self.last_stamp)
            cache.follow_text(mask)
            out: CausalLMOutputWithPast = self.hf(input_ids=ids, past_key_values=cache, use_cache=True, **kwargs)
        assert out.logits is not None
        require_finite(out.logits[:, -1])
        return out

    @torch.inference_mode(False)
    @torch.no_grad()
    def generate(
        self, memory: Memory | Sequence[Memory], prompt: Any, *, retrieve_every: int | None = None, **kwargs: Any
    ) -> Any:
        """Continue a prompt with memory as attention prefix; every option of transformers' `generate` works.

        Args:
            prompt: text or ids `[T]`; for several memories a list of these or ids `[B, T]` (padded on the left by
                `attention_mask`, if given).
            retrieve_every: retrieve from long-term memory again each time so many tokens were generated, for these
                tokens; None: for the prompt only, as published.
            kwargs: for transformers' `generate`, e.g. `max_new_tokens`, `num_beams`, `do_sample`, `streamer`.

        Returns:
            For text: the continuation, or a list of them for several memories or return sequences. For ids: what
            transformers returns, `[B, T + new]` or an output object.
        """
        if clash := {"past_key_values", "inputs", "input_ids", "inputs_embeds"} & set(kwargs):
            raise InvalidInputError(f"generate sets {sorted(clash)[0]} itself: the prompt is its second argument")
        if kwargs.get("use_cache") is False:
            raise InvalidInputError("memory is read through the cache; leave use_cache on")
        text = isinstance(prompt, Sequence) and all(isinstance(part, str) for part in prompt)
        memories, rows = rows_of(self, memory, prompt)
        ids, mask = left_padded(rows, self.pad)
        if (given := kwargs.pop("attention_mask", None)) is not None:
            mask = given.to(ids.device).view_as(ids) != 0
        out = generate(self, memories, ids, mask, retrieve_every, kwargs)
        if not text or not isinstance(out, Tensor):
            return out
        texts = self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return texts[0] if isinstance(prompt, str) and len(texts) == 1 else texts

    @property
    def pad(self) -> int:
        """The id that fills up short rows; what it is does not matter, it is masked."""
        return padding_id(self.tokenizer, self.hf.generation_config)
