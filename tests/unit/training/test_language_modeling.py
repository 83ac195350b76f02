"""Batches of running text say which chunks stand in front of what is read."""

import random

import pytest

from remanence.training.tasks.language_modeling import CHUNK, FRONT, LENGTHS, TextTask
from remanence.training.tasks.pool_task import PoolBatch

TEXT = range(10, 60_000)  # each token one more than the one before it


def task(tokens: int = 2048) -> TextTask:
    return TextTask(TEXT, 0, slots=64, slots_per_write=16, tokens=tokens)


def fronts(episodes: PoolBatch) -> list[list[int]]:
    """Of each row, its chunks that end where what it reads begins, by their place in its order."""
    first = episodes.prompts.ids[:, 0]
    return [
        [place for place, chunk in enumerate(order.tolist()) if 0 < read - episodes.chunks[chunk, 0] <= FRONT * CHUNK]
        for read, order in zip(first, episodes.order, strict=True)
    ]


def test_text_alone_is_predicted_token_by_token() -> None:
    prompts = task().alone(random.Random(0))
    rows, length = prompts.ids.shape
    assert length + 1 in LENGTHS and rows == 2048 // (length + 1)
    assert prompts.labels.equal(prompts.ids + 1)


def test_a_related_memory_ends_with_what_stands_in_front_of_the_text() -> None:
    episodes = task().behind_memory(random.Random(1), related=True)
    written = episodes.order.shape[1]
    assert fronts(episodes) == [list(range(written - FRONT, written))] * len(episodes.order)
    last = episodes.chunks[episodes.order[:, -1], -1]
    assert episodes.prompts.ids[:, 0].equal(last + 1)
    newest = [sorted(row[-FRONT:]) for row in episodes.order.tolist()]
    assert [row.nonzero().flatten().tolist() for row in episodes.targets] == newest
    assert episodes.prompts.labels.equal(episodes.prompts.ids + 1)


def test_an_unrelated_memory_holds_nothing_of_the_text() -> None:
    episodes = task().behind_memory(random.Random(1), related=False)
    assert not any(fronts(episodes))
    assert not episodes.targets.any()


@pytest.mark.parametrize("related", [True, False])
def test_however_few_tokens_there_are_rows_with_something_written(related: bool) -> None:
    episodes = task(tokens=1).behind_memory(random.Random(1), related=related)
    assert episodes.order.shape == (2, FRONT)
    assert all(len(set(row)) == FRONT for row in episodes.order.tolist())
