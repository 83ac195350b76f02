"""MemoryModel: a function that writes and reads memories."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from remanence.errors import InvalidInputError
from remanence.memory import LongTerm, Memory, Receipt, Storage
from remanence.model.adapters import Role
from remanence.model.checks import integer, require_own, require_slots, rows_of
from remanence.model.decoder import MemoryDecoder
from remanence.model.generation import generate, prefix_for, prepare, require_finite
from remanence.model.inputs import Content, left_padded
from remanence.model.prefix import pool_with_pending
from remanence.model.shipped import memory_of, new_longterm
from remanence.model.writing import Progress, encode_rows, projected, put, write_rows


class MemoryModel(MemoryDecoder):
    """A decoder that writes and reads memories.

    Make one with `from_pretrained` or `attach`. It holds no memory itself: memories are values, made by `new_memory`.
    Its attributes are those of `MemoryDecoder`.
    """

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

    def save_pretrained(self, path: str | os.PathLike[str], *, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write the decoder, its tokenizer and the memory's parameters; `from_pretrained` reads them back.

        `state_dict`: what to write in place of the model's own, of which a sharded model holds parts only.
        """
        from remanence.model.checkpoint import save

        save(self, Path(path), state_dict)

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
