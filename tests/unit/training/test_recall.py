"""Recall batches ask about what they wrote, and never about a person of the test."""

import itertools
import random
from typing import Any

import pytest
import torch

from remanence.data.biographies import _corpus, split_of
from remanence.training.tasks.prompts import Prompts
from remanence.training.tasks.recall import Difficulty, Kind, RecallTask


class WordTokenizer:
    """One token per word, made up as words come."""

    pad_token_id, eos_token_id = 0, 1

    def __init__(self) -> None:
        self.words = ["<pad>", "<eos>"]

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        spaced = [text.replace(".", " .").replace("?", " ?").replace(":", " :").split() for text in texts]
        self.words += [w for w in dict.fromkeys(w for words in spaced for w in words) if w not in self.words]
        return {"input_ids": [[self.words.index(word) for word in words] for words in spaced]}

    def text(self, ids: list[int]) -> str:
        return " ".join(self.words[i] for i in ids if i > 1)


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer()


@pytest.fixture
def task(tokenizer: Any) -> RecallTask:
    prose = tokenizer([" ".join(f"prose{i}" for i in range(40))], add_special_tokens=False)["input_ids"]
    return RecallTask(tokenizer, prose, slots=32, slots_per_write=8, chunks=8, rows=8, questions=32)


def answers(tokenizer: WordTokenizer, prompts: Prompts) -> list[list[str]]:
    """The labelled words of each example, row by row."""
    labels = prompts.labels[:, prompts.context :].unflatten(1, (prompts.examples, -1))
    return [[tokenizer.text([i for i in example.tolist() if i != -100]) for example in row] for row in labels]


@pytest.mark.parametrize("kind", ["pairs", "biographies"])
@pytest.mark.parametrize("chunks_per_row", [1, 2, 4, 0])
def test_every_answer_stands_in_a_chunk_that_is_asked_about(
    task: RecallTask, tokenizer: WordTokenizer, kind: Kind, chunks_per_row: int
) -> None:
    episodes = task.through_memory(random.Random(0), Difficulty(chunks_per_row, (2, 3), kind=kind))
    texts = [tokenizer.text(ids) for ids in episodes.chunks.tolist()]
    for row, given in enumerate(answers(tokenizer, episodes.prompts)):
        asked = [texts[chunk] for chunk in episodes.targets[row].nonzero().flatten().tolist()]
        assert all(any(answer in text for text in asked) for answer in given)


def test_answers_in_context_stand_in_the_context(task: RecallTask, tokenizer: WordTokenizer) -> None:
    prompts = task.in_context(random.Random(1), Difficulty(4, (2, 3)))
    for row, given in zip(prompts.ids, answers(tokenizer, prompts), strict=True):
        context = tokenizer.text(row[: prompts.context].tolist())
        assert all(answer in context for answer in given)


def test_only_the_newest_writes_of_a_full_pool_are_asked_about(task: RecallTask) -> None:
    episodes = task.through_memory(random.Random(2), Difficulty(0, (2, 3)))
    written = episodes.order.shape[1]
    assert written == 8
    old = episodes.order[:, : written - 32 // 8 - 1]
    assert episodes.targets.any() and not episodes.targets.gather(1, old).any()


@pytest.mark.parametrize("chunks_per_row", [0, 1, 4, 100])
def test_no_more_rows_read_than_there_may_be_and_no_more_is_written_than_there_is(
    tokenizer: WordTokenizer, task: RecallTask, chunks_per_row: int
) -> None:
    small = RecallTask(tokenizer, task.prose, slots=256, slots_per_write=8, chunks=8, rows=3, questions=12)
    difficulty = Difficulty(chunks_per_row, (2, 3))
    episodes = small.through_memory(random.Random(0), difficulty)
    assert episodes.order.shape == (3, min(chunks_per_row or 8, 8))
    assert len(small.in_context(random.Random(0), difficulty).ids) <= 4
    assert small.language_behind_memory(random.Random(0), difficulty).order.shape[1] == 8


def test_people_of_the_test_never_occur_in_training(task: RecallTask, tokenizer: WordTokenizer) -> None:
    text = ""
    for seed in range(20):
        episodes = task.through_memory(random.Random(seed), Difficulty(2, (2, 3), prose=0.0))
        text += " ".join(tokenizer.text(ids) for ids in [*episodes.chunks.tolist(), *episodes.prompts.ids.tolist()])
    words = text.replace("'s", "").split()
    names = {f"{a} {b}" for a, b in itertools.pairwise(words) if a[0].isupper() and b[0].isupper()}
    corpus = _corpus()
    first, last = {*corpus["female"], *corpus["male"]}, set(corpus["last"])
    people = {name for name in names if name.split()[0] in first and name.split()[1] in last}
    assert len(people) > 100
    assert all(split_of(person) == "train" for person in people)


def test_an_easy_start_keeps_to_a_few_names_and_values(task: RecallTask, tokenizer: WordTokenizer) -> None:
    seen = set()
    for seed in range(10):
        episodes = task.through_memory(random.Random(seed), Difficulty(1, (3, 3), ("pet",) * 3, names=2, values=2))
        seen |= {answer for row in answers(tokenizer, episodes.prompts) for answer in row}
    assert len(seen) == 2


def test_language_batches_hold_prose_and_biographies(task: RecallTask, tokenizer: WordTokenizer) -> None:
    prompts = task.language(random.Random(0))
    texts = [tokenizer.text(row.tolist()) for row in prompts.ids]
    assert any("prose1" in text for text in texts)
    assert any("Question" in text for text in texts)


def test_language_behind_a_full_memory_is_about_none_of_what_it_holds(
    task: RecallTask, tokenizer: WordTokenizer
) -> None:
    difficulty = Difficulty(0, (2, 3))
    episodes = task.language_behind_memory(random.Random(0), difficulty)
    assert not episodes.targets.any()
    assert episodes.order.shape[1] * 8 > 32  # more than the pool holds
    beyond = task.language_beyond_pool(random.Random(0), difficulty, num_bank_chunks=4)
    assert not beyond.targets.any()
    for prompts in (episodes.prompts, beyond.prompts):
        texts = [tokenizer.text(row.tolist()) for row in prompts.ids]
        assert any("prose1" in text for text in texts)
        assert any("Question" in text for text in texts)
    assert torch.equal(beyond.query_mask, beyond.prompts.labels != -100)


@pytest.fixture
def crowded(tokenizer: Any) -> RecallTask:
    """So many people of a few names that some come twice."""
    prose = tokenizer([" ".join(f"prose{i}" for i in range(40))], add_special_tokens=False)["input_ids"]
    return RecallTask(tokenizer, prose, slots=32, slots_per_write=8, chunks=64, rows=32)


def names_in(texts: list[str]) -> list[str]:
    """The first of all train names that stands in each text."""
    corpus = _corpus()
    first, last = {*corpus["female"], *corpus["male"]}, set(corpus["last"])
    found = []
    for text in texts:
        words = text.replace("'s", "").split()
        pairs = [" ".join(pair) for pair in itertools.pairwise(words) if pair[0] in first and pair[1] in last]
        found.append(pairs[0] if pairs else "")
    return found


def test_of_two_chunks_that_answer_a_question_beyond_the_pool_the_later_is_asked_about(
    crowded: RecallTask, tokenizer: WordTokenizer
) -> None:
    contradicted = 0
    for seed in range(4):
        batch = crowded.beyond_pool(
            random.Random(seed), Difficulty(0, (2, 4)), num_bank_chunks=16, shared=6, allow_same_name=True
        )
        texts = [tokenizer.text(ids) for ids in batch.chunks.tolist()]
        about = names_in(texts)
        given = [row[0] for row in answers(tokenizer, batch.prompts)]
        for row, target in enumerate(batch.targets.int().argmax(1).tolist()):
            assert given[row] in texts[target]
            others = {c for c, name in enumerate(about) if name == about[target] and c != target}
            assert set(batch.ignore_mask[row].nonzero().flatten().tolist()) == others
            newer = [c for c in others if c > target]
            contradicted += any(c < target for c in others)
            assert not any(given[row] in texts[c] for c in newer)
            in_pool = set(batch.order[row].tolist())
            assert len(in_pool) == batch.order.shape[1]
    assert contradicted > 10


def test_a_chunk_that_was_true_once_never_stands_in_the_pool(crowded: RecallTask, tokenizer: WordTokenizer) -> None:
    """Two biographies of one person that both tell their whole eight facts: the earlier is in no pool."""
    for seed in range(4):
        batch = crowded.beyond_pool(
            random.Random(seed), Difficulty(0, (8, 8)), num_bank_chunks=16, shared=6, allow_same_name=True
        )
        about = names_in([tokenizer.text(ids) for ids in batch.chunks.tolist()])
        for row, target in enumerate(batch.targets.int().argmax(1).tolist()):
            same = {c for c, name in enumerate(about) if name == about[target]}
            assert target == max(same)
            assert not (same - {target}) & set(batch.order[row].tolist())


def test_people_beyond_the_pool_share_names(crowded: RecallTask, tokenizer: WordTokenizer) -> None:
    counts = []
    for shared, twins in ((6, True), (10, False), (0, False)):
        batch = crowded.beyond_pool(
            random.Random(0), Difficulty(0, (2, 4)), num_bank_chunks=16, shared=shared, allow_same_name=twins
        )
        names = [name for name in names_in([tokenizer.text(ids) for ids in batch.chunks.tolist()]) if name]
        assert len(names) == 48
        assert all(split_of(name) == "train" for name in names)
        assert (len(set(names)) < 48) == twins
        counts.append(max(len({name.split()[part] for name in names}) for part in (0, 1)))
    assert counts[0] <= 6 < counts[1] <= 10 < counts[2]
