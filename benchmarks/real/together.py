"""Four passages read together, put together in other ways: what each gives.

plain          each passage encoded behind the head alone, oldest first: what is built in
by score       the best passage next to the question
cooler 0.9     keys of the passages divided by 0.9, which sharpens attention to them, and by 0.8 (APE, arXiv 2502.05431,
               without its scale)
15 % again     of the tokens, those whose keys and values would differ most behind all passages before them, as they
               would be there (CacheBlend, arXiv 2405.16444; its own selection is cheaper)
all again      every passage encoded behind all before it: one long text
other system   a system message of the user's own in front of the question, where passages stand behind the default one
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from real.questions import Settings, Way, evaluation_of
from remanence import MemoryModel
from remanence.evaluation.asking import hit
from remanence.evaluation.columns import reading_all
from remanence.evaluation.evidence import Asked
from remanence.evaluation.harness import Evaluation
from remanence.evaluation.metrics import Metric
from remanence.evaluation.told import Told
from remanence.model.text import TextWriter

__all__ = ["Settings", "evaluation"]

Slots = Callable[[Any, Sequence[Any]], list[Tensor]]
SYSTEM = "You are a careful clerk at the front desk of a small hotel. Answer briefly."


def evaluation(on: Settings) -> tuple[MemoryModel, Evaluation]:
    model = MemoryModel.from_pretrained(on.model).optimize_for_cpu()
    writer: Any = model.writer
    plain = writer.slots

    held = lru_cache(maxsize=2)(lambda passages: Told(model, passages))

    def by_score(told: Told, question: str) -> tuple[str, ...]:  # what is read is read oldest first
        ranked = [write for write, _ in model.search(told.memory, question, k=len(told.passages))]
        return tuple(told.passages[told.writes.index(write)] for write in reversed(ranked))

    def way(slots: Slots = plain, *, ranked: bool = False, system: str | None = None) -> Way:
        def asked(one: Asked, passages: list[str]) -> bool:
            told = by_score(held(tuple(passages)), one.text) if ranked else tuple(passages)
            messages = [{"role": "user", "content": one.text}]
            if system is not None:
                messages.insert(0, {"role": "system", "content": system})
            memory, writer.slots = held(told).memory, slots
            try:
                with reading_all(model):
                    return hit(model.ask(memory, messages, max_new_tokens=12).text, one.truths)
            finally:
                writer.slots = plain

        return asked

    ways = {
        "plain": way(),
        "by score": way(ranked=True),
        "cooler 0.9": way(cooler(plain, 0.9)),
        "cooler 0.8": way(cooler(plain, 0.8)),
        "15 % again": way(again(writer, plain, 0.15)),
        "all again": way(again(writer, plain, 1.0)),
        "other system": way(system=SYSTEM),
    }
    return model, evaluation_of("together", on, model, 4, ways, Metric("hit", "rate", compared=True))


def cooler(slots: Slots, temperature: float) -> Slots:
    def made(memory: Any, chunks: Sequence[Any]) -> list[Tensor]:
        scale = torch.tensor([1 / temperature, 1.0])[:, None, None, None, None]
        return [one * scale.to(one.dtype) for one in slots(memory, chunks)]

    return made


def again(writer: TextWriter, slots: Slots, share: float) -> Slots:
    """Tokens as they are behind the passages before them: a share of each passage, those that differ most."""

    def made(memory: Any, chunks: Sequence[Any]) -> list[Tensor]:
        before = list(writer.head_of(memory))
        found = []
        for chunk, alone in zip(chunks, slots(memory, chunks), strict=True):
            whole = writer.encode([(before, chunk.ids)])[0].slots
            off = (whole - alone).float().square().sum((0, 1, 3, 4))  # [n]
            count = max(1, round(share * len(off)))
            picked = torch.zeros(len(off), dtype=torch.bool).index_fill(0, off.topk(count).indices, True)
            found.append(torch.where(picked[None, None, :, None, None], whole, alone))
            before += chunk.ids.tolist()
        return found

    return made
