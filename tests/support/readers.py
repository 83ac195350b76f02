"""A stand-in for a model that writes and generates: it knows texts, and says of them what it is told to say."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from remanence import MemoryModel


class Reader:
    """Knows the last texts of each memory, and what stands before the question of a prompt.

    Attributes:
        texts: by memory, all that was written. prompts: in the order in which they were asked. limits: of new tokens.
    """

    def __init__(
        self,
        model: MemoryModel,
        monkeypatch: pytest.MonkeyPatch,
        say: Callable[[list[str], str], str],
        kept: int = 10**6,
    ) -> None:
        """`say`: the answer, of known texts and a question; `kept`: texts that a memory knows."""
        self.model, self.say, self.kept = model, say, kept
        self.texts: dict[int, list[str]] = {}
        self.prompts: list[str] = []
        self.limits: set[int] = set()
        self._held: list[Any] = []  # so that no two memories are given the same id
        monkeypatch.setattr(model, "write", self.write)
        monkeypatch.setattr(model, "generate", self.generate)

    def write(self, memories: list[Any], texts: list[str]) -> list[Any]:
        self._held += memories
        for memory, text in zip(memories, texts, strict=True):
            self.texts.setdefault(id(memory), []).append(text)
        return [SimpleNamespace(id=len(self.texts[id(memory)]) - 1) for memory in memories]

    def generate(self, memories: list[Any], prompts: list[Any], *, max_new_tokens: int, **_: Any) -> Any:
        """For prompts of token ids, these and the answers behind them, padded."""
        self.limits.add(max_new_tokens)
        tokens, as_text = self.model.tokenizer, isinstance(prompts[0], str)
        texts = prompts if as_text else [tokens.decode(ids) for ids in prompts]
        self.prompts += texts
        answers = []
        for memory, text in zip(memories, texts, strict=True):
            context, question, rest = text.rpartition("Question:")
            known = self.texts.get(id(memory), [])[-self.kept :] + context.split("</s>")
            answers.append(self.say(known, question + rest))
        if as_text:
            return answers
        rows = [[0] * max(map(len, prompts)) + tokens(answer)["input_ids"] for answer in answers]
        longest = max(map(len, rows))
        return torch.tensor([row + [tokens.pad_token_id] * (longest - len(row)) for row in rows])
