"""Greedy answers: from memories, from text in the context, or from neither."""

from collections.abc import Sequence

from remanence.memory import Memory
from remanence.model.memory_model import MemoryModel
from remanence.texts import answer_of

ANSWER_TOKENS = 8
_PREFILL_TOKENS = 16_384  # read in one batch, to bound the memory that long contexts take


def answer(model: MemoryModel, memories: Sequence[Memory], prompts: Sequence[str]) -> list[str]:
    """One answer per memory."""
    texts = model.generate(list(memories), list(prompts), max_new_tokens=ANSWER_TOKENS, do_sample=False)
    return [answer_of(text) for text in texts]


def answer_rows(model: MemoryModel, memories: Sequence[Memory], rows: Sequence[list[int]]) -> list[str]:
    """One answer per memory, to prompts of token ids."""
    at_once = max(1, _PREFILL_TOKENS // max(map(len, rows)))
    answers: list[str] = []
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        out = model.generate(memories[start : start + at_once], part, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        new = out[:, max(map(len, part)) :]
        answers += [answer_of(text) for text in model.tokenizer.batch_decode(new, skip_special_tokens=True)]
    return answers


class Context:
    """The end of a growing text, as much as a model's context holds.

    Paragraphs are parted by the tokenizer's end-of-text token, as documents are in training, or else by a newline.
    """

    def __init__(self, model: MemoryModel) -> None:
        self._tokenizer = model.tokenizer
        self._room = model.backbone.config.max_position_embeddings - ANSWER_TOKENS
        end = self._tokenizer.eos_token_id
        self._separator = self._encode("\n") if end is None else [end]
        self._ids: list[int] = []

    def append(self, paragraph: str) -> None:
        self._ids = (self._ids + self._encode(paragraph) + self._separator)[-self._room :]

    def before(self, prompt: str) -> list[int]:
        return (self._ids + self._encode(prompt))[-self._room :]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
