"""Greedy answers: from memories, from text in the context, or from neither."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from remanence.memory import Memory
from remanence.model.model import MemoryModel
from remanence.texts import answer_of, token_ids

ANSWER_TOKENS = 8
_PREFILL_TOKENS = 16_384  # read in one batch, to bound the memory that long contexts take


def answer(model: MemoryModel, memories: Sequence[Memory], prompts: Sequence[str] | Sequence[list[int]]) -> list[str]:
    """One answer per memory."""
    return [answer_of(text) for text in continuations(model, memories, prompts)]


def continuations(
    model: MemoryModel,
    memories: Sequence[Memory],
    prompts: Sequence[str] | Sequence[list[int]],
    tokens: int = ANSWER_TOKENS,
) -> list[str]:
    """What follows each prompt, texts or rows of token ids, uncut: at most `tokens` tokens."""
    options: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False}
    if isinstance(prompts[0], str):
        return list(model.generate(list(memories), list(prompts), **options))
    texts: list[str] = []
    at_once = max(1, _PREFILL_TOKENS // max(map(len, prompts)))
    for start in range(0, len(prompts), at_once):
        part = prompts[start : start + at_once]
        out = model.generate(memories[start : start + at_once], part, **options)
        texts += model.tokenizer.batch_decode(out[:, max(map(len, part)) :], skip_special_tokens=True)
    return texts


class Context:
    """The end of a growing text, as much as a model's context holds beside an answer of `tokens` tokens.

    Paragraphs are parted by the tokenizer's end-of-text token, as documents are in training, or else by a newline.
    """

    def __init__(self, model: MemoryModel, tokens: int = ANSWER_TOKENS) -> None:
        self._encode, self._front = partial(token_ids, model.tokenizer), list(model.texts.front)
        self._room = model.backbone.config.max_position_embeddings - tokens - len(self._front)
        end = model.tokenizer.eos_token_id
        self._separator = self._encode("\n") if end is None else [end]
        self._ids: list[int] = []

    def append(self, paragraph: str) -> None:
        self._ids = (self._ids + self._encode(paragraph) + self._separator)[-self._room :]

    def before(self, prompt: str) -> list[int]:
        return self._front + (self._ids + self._encode(prompt))[-self._room :]
