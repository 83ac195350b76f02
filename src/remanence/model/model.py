"""MemoryModel: a function that writes and reads memories."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, overload

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from remanence.config import StorageConfig, integer
from remanence.errors import InvalidInputError
from remanence.memory.memory import Memory
from remanence.memory.transaction import Progress, WriteOptions, write
from remanence.memory.writes import Receipt
from remanence.model import read as reading
from remanence.model.chat import TODAY, Prompt
from remanence.model.choosing import scores, sources_of
from remanence.model.decoder import Memories, MemoryDecoder
from remanence.model.formats import native
from remanence.model.inputs import Content, Message, check_text, checked_metadata, is_text, to_rows
from remanence.model.learned import LearnedWriter
from remanence.model.text import TextWriter, chunks_of
from remanence.model.validation import listed


class MemoryModel(MemoryDecoder):
    """A decoder that writes and reads memories, which are values of their own: `new_memory` makes them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        learned = self.config.writer == "learned"
        self.writer: LearnedWriter | TextWriter = LearnedWriter(self) if learned else TextWriter(self)

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
        base: str | os.PathLike[str] | None = None,
        parts: Collection[str] | None = None,
    ) -> "MemoryModel":
        """Load a model by its name ("smollm2", after `remanence setup smollm2`; "tiny"), a directory made by
        `save_pretrained`, a published checkpoint (detected), or one from the hub.

        Args:
            dtype: of the weights; None: as they were saved. A bundled model of adapters: float32 on a CPU.
            base: the folder of the decoder, for a checkpoint of adapters; None: where `remanence setup` put it.
            parts: of a checkpoint of adapters, which to load, such as `["reader"]`; None: all, `[]`: none.
            bfloat16_rotary: round the rotary frequencies to bfloat16. The published usage casts the whole model, and
                with it these; its answers at long prefixes come back only so, and are the worse for it.

        Raises:
            FileNotFoundError, CheckpointError: something is missing, and what.
        """
        loaded = native.load(
            path_or_hub_id,
            keep_hidden,
            dtype=dtype,
            attn_implementation=attn_implementation,
            base=base,
            parts=parts,
        )
        model = cls(
            loaded.hf,
            loaded.tokenizer,
            loaded.config,
            adapters=loaded.adapters,
            retriever=loaded.retriever,
            name=str(path_or_hub_id),
        )
        native.adopt(model, loaded)
        if isinstance(model.writer, LearnedWriter):
            model.writer.shipped = loaded.shipped
        if bfloat16_rotary:
            native.round_rotary(model.hf)
        if loaded.token_retriever is not None:
            model.use_token_retriever(loaded.token_retriever)
        model.eval()
        return model if device is None else model.to(device)

    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        base: str | None = None,
    ) -> None:
        """Write the decoder, its tokenizer and the memory's parameters; `from_pretrained` reads them back.

        Args:
            state_dict: what to write in place of the model's own, of which a sharded model holds parts only.
            base: the name of the decoder, such as "smollm2". Then only what was trained is written (text memories).
        """
        if isinstance(self.writer, LearnedWriter) and self.writer.shipped is not None:
            raise native.published_only()
        native.save(self, Path(path), state_dict, base)

    def new_memory(self, seed: int = 0, *, storage: StorageConfig | None = None, **options: Any) -> Memory:
        """A memory with nothing written, or with the pool that a checkpoint ships.

        `seed` sets who is evicted; the same writes into two memories of one seed give the same memory, bit for bit.

        Args:
            storage: where slots lie. None: text memories keep token ids, and encode them again when they are read;
                learned ones keep long-term slots in host memory.
            options: learned: `longterm=False` keeps nothing of what the pool evicts, `capacity=` M, the most long-term
                slots per layer. Text: `head=` token ids in front of every chunk, `date=` for templates.

        Raises:
            InvalidInputError: an option is unknown or does not fit.
        """
        seed = integer("seed", seed)
        try:
            return self.writer.new_memory(seed, storage, **options)
        except TypeError as error:
            raise InvalidInputError(f"a {self.config.writer} memory has no such option: {error}") from error

    @torch.inference_mode(False)
    @torch.no_grad()
    def memory_from_slots(self, hidden: Tensor, seed: int = 0) -> Memory:
        """A learned memory whose pool holds these slots in hidden form, `[L, N, d]`, oldest first.

        Raises:
            InvalidInputError: wrong shape or dtype, or a text memory, which has no such slots.
        """
        if isinstance(self.writer, TextWriter):
            raise InvalidInputError("slots in hidden form belong to a learned memory; this model writes text slots")
        return self.writer.memory_of(hidden, seed, None)

    @overload
    def write(self, memory: Memory, content: Content, **options: Unpack[WriteOptions]) -> Receipt: ...

    @overload
    def write(
        self,
        memory: Sequence[Memory],
        content: Sequence[Content] | Tensor | Mapping[str, Any],
        **options: Unpack[WriteOptions],
    ) -> list[Receipt]: ...

    @torch.inference_mode(False)
    @torch.no_grad()
    def write(
        self,
        memory: Memory | Sequence[Memory],
        content: Any,
        *,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        id: int | None = None,
        allow_special: bool = False,
        commit: Callable[[Any], object] | None = None,
        progress: Progress | None = None,
        evict: Tensor | None = None,
    ) -> Receipt | list[Receipt]:
        """Write a text into a memory, in place: whole, or not at all.

        Long text is cut into chunks. Given lists, row i goes to memory i, and the rows do not touch each other.

        Args:
            content: text, messages, or ids `[T]`; for several memories a list of these, or ids `[B, T]`.
            source, metadata: kept with the record of the write; metadata is JSON.
            id: of the write, larger than those before; None: the next number.
            allow_special: special tokens in the text are meant, and not just written there.
            commit: called with what is returned, when everything else is done; if it raises, nothing was written.
            progress: called with (chunks done, chunks in all).
            evict: replay, for one memory and one chunk: ranks `[L, K]` to evict (0 = oldest) instead of drawing them.

        Raises:
            InvalidInputError: empty text, ids outside the vocabulary, wrong dtype, shape or device.
            MemoryMismatchError: another model's memory.
            CorruptMemoryError: the memory or the model holds numbers that are not finite.
        """
        single = isinstance(memory, Memory)
        rows = self.rows_of(memory)
        if any(len(row) != 1 for row in rows):
            raise InvalidInputError("a text is written into one memory; give a text to each")
        memories = [row[0] for row in rows]
        self.warn_untrained()
        texts = [content] if single and not isinstance(content, Mapping) else to_rows(content, len(memories))
        pieces = [self.writer.pieces(one, text, allow_special) for one, text in zip(memories, texts, strict=True)]
        about = {"source": source, "metadata": checked_metadata(metadata)}
        done: Any = None if commit is None else (lambda made: commit(made[0] if single else made))
        receipts = write(self.writer, memories, pieces, about, id_=id, evict=evict, progress=progress, commit=done)
        return receipts[0] if single else receipts

    def forget(self, memory: Memory, write_id: int) -> Receipt:
        """Take a write out of a text memory: chunks do not see each other, so the others are as they were.

        Returns a receipt whose `exact` says whether the memory is now as if it had never been told this: False where
        something was dropped for good after the write, which it might still hold otherwise.

        Raises:
            InvalidInputError: no such write, or a learned memory.
        """
        self.rows_of(memory)
        if memory.chunks is None:
            raise InvalidInputError(
                "slots of a learned memory hold what came before them, so a write cannot be taken out; make the memory "
                "again from its other writes: a store keeps them and replays"
            )
        with memory.changing() as undo:
            record = next((one for one in memory.writes if one.id == write_id), None)
            if record is None:
                raise InvalidInputError(f"this memory has no write {write_id!r}; memory.writes lists those it has")
            gone, exact = memory.drop(write_id, undo), memory.chunks.dropped < write_id
            return Receipt(write_id, record.tokens, len(gone), exact=exact)

    @torch.inference_mode(False)
    @torch.no_grad()
    def read(
        self,
        memory: Memories,
        content: Any,
        *,
        attention_mask: Tensor | None = None,
        allow_special: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One forward pass over a prompt with memory as attention prefix: `out.logits` `[B, T, V]`. Changes nothing.

        Rows of different length are padded on the left; their logits are right-aligned. A row may read several text
        memories: give a list of them in the place of one. Where no row finds anything, this is the stock call.

        Args:
            attention_mask: of ids `[B, T]`, 0 where they are padding.
            kwargs: passed to the decoder's forward, e.g. `logits_to_keep=1`, `output_attentions=True`.

        Raises:
            InvalidInputError, MemoryMismatchError, CorruptMemoryError: as for `write`; the prompt is too long.
        """
        made = self._reading(memory, content, attention_mask, allow_special)
        out: CausalLMOutputWithPast = reading.forward(self, made, kwargs)
        return out

    @torch.inference_mode(False)
    @torch.no_grad()
    def generate(
        self,
        memory: Memories,
        prompt: Any,
        *,
        retrieve_every: int | None = None,
        attention_mask: Tensor | None = None,
        allow_special: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Continue a prompt with memory as attention prefix; every option of transformers' `generate` works.

        Args:
            prompt: text, messages, or ids `[T]`; for several memories a list of these or ids `[B, T]`.
            retrieve_every: retrieve from long-term memory again each time so many tokens were generated, for these
                tokens; None: for the prompt only, as published.
            attention_mask: of ids `[B, T]`, 0 where they are padding.
            kwargs: for transformers' `generate`, e.g. `max_new_tokens`, `num_beams`, `do_sample`, `streamer`.

        Returns:
            For text and messages: the continuation, or a list of them for several memories or return sequences. For
            ids: what transformers returns, `[B, T + new]` or an output object.
        """
        for name in reading.SET_HERE:
            if name in kwargs:
                raise InvalidInputError(f"generate sets {name} itself: the prompt is its second argument")
        if kwargs.get("use_cache") is False:
            raise InvalidInputError("memory is read through the cache; leave use_cache on")
        made = self._reading(memory, prompt, attention_mask, allow_special, kwargs, retrieve_every)
        out = reading.generate(self, made, kwargs)
        single = isinstance(memory, Memory)
        text = all(map(is_text, [prompt] if isinstance(memory, Memory) else to_rows(prompt, len(memory))))
        if not text or not isinstance(out, Tensor):
            return out
        texts = self.tokenizer.batch_decode(out[:, made.given.shape[1] :], skip_special_tokens=True)
        return texts[0] if single and len(texts) == 1 else texts

    def ask(
        self,
        memory: Memory | Sequence[Memory],
        question: str | Sequence[Message],
        *,
        max_new_tokens: int = 64,
        **kwargs: Any,
    ) -> reading.Answer:
        """The greedy answer to a question, and the writes it was read from.

        A model with a chat template and text slots is asked in a conversation, others by "Question: ... Answer:", of
        which the first line is the answer.
        """
        self.warn_untrained()
        memories: Memories = memory if isinstance(memory, Memory) else [listed(memory)]
        chat = self.config.writer == "text" and self.texts.chats
        prompt: Any = question
        query = question if isinstance(question, str) else None
        if query is not None:
            check_text(query)
            prompt = [{"role": "user", "content": query}] if chat else f"Question: {query.strip()} Answer:"
        kwargs = {"do_sample": False, **kwargs, "max_new_tokens": max_new_tokens}
        content = prompt if isinstance(memory, Memory) else [prompt]
        with torch.inference_mode(False), torch.no_grad():
            made = self._reading(memories, content, None, False, kwargs, query=query)
            out = reading.generate(self, made, kwargs)
        text = self.tokenizer.decode(out[0, made.given.shape[1] :], skip_special_tokens=True).strip()
        sources = [] if text == self.config.retrieval.refusal else reading.found_writes(made)
        found = bool(sources) if self.config.writer == "text" else any(m.written for m in self.rows_of(memory)[0])
        return reading.Answer(text if chat else text.partition("\n")[0].strip(), found, sources)

    @torch.inference_mode(False)
    @torch.no_grad()
    def search(
        self, memory: Memory | Sequence[Memory], question: str | Sequence[Message], k: int = 5
    ) -> list[tuple[int, float]]:
        """The k writes that score best against a question, whatever they score: ids and scores.

        Learned memories have to have a retriever; the score of a write is its share of the slots retrieved.
        """
        memories: Memories = memory if isinstance(memory, Memory) else [listed(memory)]
        content = question if isinstance(memory, Memory) else [question]
        rows, prompts = self._prompts(memories, content, False)
        if isinstance(self.writer, TextWriter):
            return sources_of(scores(self.writer, rows, prompts)[0])[: integer("k", k)]
        if self.retriever is None:
            raise InvalidInputError("this model has no retriever, so it cannot search; its pool is read as a whole")
        made = self._reading(memories, content, None, False)
        reading.forward(self, made, {"logits_to_keep": 1})
        return reading.found_writes(made)[: integer("k", k)]

    def forward(self, ids: Tensor, memory: Memories | None = None, labels: Tensor | None = None) -> Any:
        """A forward pass behind memories, as of any model: logits `[B, T, V]`, and a loss if there are labels.

        Gradients reach the decoder, not the memories. `ids` `[B, T]` without padding; `memory` as for `read`, None: the
        stock call. `labels` `[B, T]`: -100 where none counts, shifted inside.
        """
        self.require_attached()
        if memory is None:
            with self.stock():
                return self.hf(input_ids=ids, labels=labels)
        with torch.no_grad():
            made = self._reading(memory, ids, None, False)
        out = reading.forward(self, made, {})
        if labels is not None:
            out.loss = self.hf.loss_function(out.logits, labels, vocab_size=self.vocabulary)
        return out

    def inspect(self, memory: Memory) -> dict[str, Any]:
        """What a memory holds, as plain figures: writes, slots, bytes by tier, and whether this model can read it."""
        with memory.lock:
            spec = memory.spec
            about: dict[str, Any] = {"writer": spec.writer, "writes": memory.write_count}
            if (chunks := memory.chunks) is not None:
                about |= {"chunks": len(chunks), "tokens": chunks.tokens}
            else:
                about |= {"slots": spec.slots, "slots_per_write": spec.slots_per_write}
            about |= {} if memory.longterm is None else {"longterm": memory.longterm.sizes()}
            return {**about, "bytes": memory.nbytes, "model": spec.model, "readable": not self.spec.differing(spec)}

    def _reading(
        self,
        memory: Memories,
        content: Any,
        mask: Tensor | None,
        allow_special: bool,
        options: dict[str, Any] | None = None,
        retrieve_every: int | None = None,
        query: str | None = None,
    ) -> reading.Reading:
        """What a call reads; `options` of `generate`, if it is one."""
        if mask is not None:
            ids, mask = torch.atleast_2d(torch.as_tensor(content)), torch.atleast_2d(mask)
            content = {"input_ids": ids, "attention_mask": mask}
        rows, prompts = self._prompts(memory, content, allow_special, query)
        if isinstance(self.writer, TextWriter):
            made = reading.text_reading(self, self.writer, rows, prompts, options)
        else:
            made = reading.learned_reading(self, [row[0] for row in rows], prompts, options, retrieve_every)
        if mask is not None:
            made.restore(ids, mask)
        return made

    def _prompts(
        self, memory: Memories, content: Any, allow_special: bool, query: str | None = None
    ) -> tuple[list[list[Memory]], list[Prompt]]:
        rows = self.rows_of(memory)
        single = isinstance(memory, Memory) and not isinstance(content, Mapping)
        texts = [content] if single else to_rows(content, len(rows))
        return rows, [
            self.texts.prompt(text, self.device, date=_date(row[0]), allow_special=allow_special, query=query)
            for row, text in zip(rows, texts, strict=True)
        ]


def _date(memory: Memory) -> str:
    return TODAY if memory.chunks is None else chunks_of(memory).date
