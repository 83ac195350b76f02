"""The checkpoints that come with the package do what they are there to show."""

from collections.abc import Sequence

import pytest

from remanence import Memory, MemoryModel
from remanence.checkpoints import DEFAULT, LEARNED, bundled, names, whole
from remanence.data.episodes import Episode
from remanence.evaluation.answering import answer

PEOPLE = 8


def right(model: MemoryModel, memories: Sequence[Memory], episodes: Sequence[Episode]) -> int:
    questions = [episode.question(0) for episode in episodes]
    answers = answer(model, memories, [question.text for question in questions])
    return sum(given == question.truth for given, question in zip(answers, questions, strict=True))


def test_the_adapters_of_a_real_model_are_the_default_and_two_models_are_whole() -> None:
    assert names() == ["smollm2", "tiny", "tiny_longterm"] and whole() == ["tiny", "tiny_longterm"]
    assert DEFAULT == "smollm2" and LEARNED == "tiny_longterm"


def test_parts_are_small() -> None:
    sizes = {file.name: file.stat().st_size for file in bundled("smollm2").glob("*.safetensors")}
    assert sizes.keys() == {"reader.safetensors", "retriever.safetensors"}
    assert max(sizes.values()) <= 12 * 2**20


@pytest.mark.parametrize("name", ["tiny", "tiny_longterm"])
def test_what_was_just_written_is_recalled(name: str) -> None:
    model = MemoryModel.from_pretrained(bundled(name))
    episodes = [Episode(1, index) for index in range(PEOPLE)]
    memories = [model.new_memory(index) for index in range(PEOPLE)]
    assert right(model, memories, episodes) <= 1
    model.write(memories, [episode.fact for episode in episodes])
    assert right(model, memories, episodes) >= PEOPLE - 1


@pytest.mark.slow
def test_long_term_memory_recalls_what_the_pool_has_lost() -> None:
    model = MemoryModel.from_pretrained(bundled("tiny_longterm"))
    episodes = [Episode(2, index) for index in range(PEOPLE)]
    memories = [model.new_memory(index) for index in range(PEOPLE)]
    model.write(memories, [episode.fact for episode in episodes])
    for _ in range(5 * model.slots // model.slots_per_write):
        model.write(memories, [next(episode.unrelated) for episode in episodes])
    assert right(model, [memory.pool_only() for memory in memories], episodes) <= 3
    assert right(model, memories, episodes) >= PEOPLE - 1
