"""Harm: how much worse a model reads a text when its memory holds something else.

Tokens are predicted within windows of a text, under each of these memories:

| memory | what it holds |
|---|---|
| empty | nothing: it was never written, and the decoder reads alone, with its adapter for reading if it has one |
| shipped | what the checkpoint ships, where it ships a pool |
| unrelated | its pool is full of biographies and paragraphs of novels that do not stand in the text |
| related | the same, and after it the window of text in front of the one that is read |

A memory that does no harm has an unrelated perplexity like the empty one.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from math import exp, sqrt
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from remanence.data.episodes import unrelated
from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.evaluation.distances import writes_per_pool
from remanence.evaluation.resuming import identity, keep, kept
from remanence.evaluation.scoring import room
from remanence.memory import Memory
from remanence.model.model import MemoryModel

Condition = Literal["empty", "shipped", "unrelated", "related"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)


def bundled_text() -> str:
    """Every other paragraph of the bundled novels, one per line; the rest is there to be written."""
    return "\n".join(paragraphs()[::2])


def measure(
    model: MemoryModel,
    text: str,
    *,
    samples: int = 100,
    window: int = 256,
    memories: int = 8,
    seed: int = 0,
    state: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Perplexity of a text under each memory, and its ratio to that with an empty one.

    Args:
        samples: windows, spread evenly over the text; fewer if it has fewer.
        window: tokens of each. All but the first are predicted, from those before them in the window.
        memories: written apart from each other and read in one batch, a window each.
        state: folder in which losses are kept batch by batch; a run that was cut goes on from there.
        progress: called with (steps done, steps in all).

    Returns:
        what `identity` gives, `window`, `memories`, `samples`, `seed`, `tokens` (predicted); `conditions`: per memory
        `perplexity` and its `stderr`, `ratio` to empty and its `ratio_stderr`. One standard error, over windows; that
        of a ratio is of paired differences.

    Raises:
        InvalidInputError: the text is shorter than three windows; sizes that make no sense or do not fit the model; a
            state folder of another run.
    """
    if window < 2 or samples < 2 or memories < 1:
        raise InvalidInputError("perplexity needs at least two windows, of at least two tokens, and one memory")
    if window > (most := room(model, written=True)):
        raise InvalidInputError(f"a window of {window} tokens does not fit behind the memory; at most {most} do")
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    windows = torch.tensor(ids[: len(ids) // window * window], device=model.device).view(-1, window)
    if len(windows) < 3:
        raise InvalidInputError(f"the text has {len(ids)} tokens; three windows of {window} need {3 * window}")
    count = min(samples, len(windows) - 1)
    chosen = [1 + index * (len(windows) - 1) // count for index in range(count)]
    writes = 2 * writes_per_pool(model)
    starts = range(0, count, memories)
    steps = iter(range(1, writes + len(starts) + 1))

    def step() -> None:
        done = next(steps)
        if progress is not None:
            progress(done, writes + len(starts))

    held = [model.new_memory(seed + index) for index in range(min(memories, count))]
    streams = [_absent(random.Random(f"{seed}/{index}"), text) for index in range(len(held))]
    for _ in range(writes):
        model.write(held, [next(stream) for stream in streams])
        step()
    by = {**identity(model), "window": window, "memories": memories, "samples": count, "seed": seed}
    run = {**by, "text": hashlib.sha256(text.encode()).hexdigest()[:16]}
    record = None if state is None else kept(state / "losses.json", run)
    losses: dict[Condition, list[float]] = {} if record is None else record["losses"]
    for start in starts:
        part = chosen[start : start + memories]
        for condition in CONDITIONS:
            done = losses.setdefault(condition, [])
            if len(done) == start and (condition != "shipped" or model.shipped_pool is not None):
                read = _memories(model, condition, held[: len(part)], seed, windows[[index - 1 for index in part]])
                done += _losses(model, read, windows[part]).tolist()
        if state is not None:
            keep(state / "losses.json", run, losses=losses)
        step()
    means = {condition: torch.tensor(each, dtype=torch.float64) for condition, each in losses.items() if each}
    figures = {condition: _figures(each, means["empty"]) for condition, each in means.items()}
    return {**by, "tokens": count * (window - 1), "conditions": figures}


def _absent(rng: random.Random, text: str) -> Iterator[str]:
    """Unrelated paragraphs that do not stand in the text, however its lines are broken, nor are about people in it."""
    flat = " ".join(text.split())
    return (paragraph for paragraph in unrelated(rng, flat) if paragraph not in flat)


def _memories(
    model: MemoryModel, condition: Condition, held: Sequence[Memory], seed: int, before: Tensor
) -> list[Memory]:  # before [B, window], the text in front of what is read
    if condition == "empty":
        return [Memory(model.spec) for _ in held]
    if condition == "shipped":
        return [model.new_memory(seed + index) for index in range(len(held))]
    if condition == "related":
        forks = [memory.fork() for memory in held]
        model.write(forks, before)
        return forks
    return list(held)


def _losses(model: MemoryModel, memories: Sequence[Memory], windows: Tensor) -> Tensor:  # [B], mean over tokens
    logits = model.read(memories, windows).logits
    assert logits is not None
    return cross_entropy(logits[:, :-1].float().mT, windows[:, 1:], reduction="none").mean(dim=1).double().cpu()


def _figures(losses: Tensor, empty: Tensor) -> dict[str, float]:  # [samples] each
    perplexity, ratio = exp(float(losses.mean())), exp(float((losses - empty).mean()))
    return {
        "perplexity": perplexity,
        "stderr": perplexity * _stderr(losses),
        "ratio": ratio,
        "ratio_stderr": ratio * _stderr(losses - empty),
    }


def _stderr(values: Tensor) -> float:
    return float(values.std()) / sqrt(len(values))
