"""Which chunks conversations read, once the reader has been shown each by itself."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from remanence import Memory, MemoryModel
from remanence.config import RetrievalConfig, logit, sigmoid
from remanence.errors import InvalidInputError
from remanence.model import choosing
from remanence.model.choosing import Source, choose, refusal_token
from remanence.model.text import TextWriter
from tests.unit.model.test_reader import chatting

TEXTS = (
    "Bob keeps bees behind the mill.",
    "Carla sings in the choir of Porto every Sunday.",
    "Dina sold the blue boat to her uncle.",
    "The mill burnt down in the spring.",
)
ASKED = ("Where was Alice born?", "Who keeps bees?", "What burnt down?")


def told(**retrieval: Any) -> tuple[MemoryModel, Memory]:
    model, memory = chatting(**retrieval)
    model.config = model.config.replace(retrieval=model.config.retrieval.replace(min_score=0.0))
    for text in TEXTS:
        model.write(memory, text)
    return model, memory


def message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def chosen(model: MemoryModel, memories: Sequence[Memory], content: Sequence[Any]) -> list[list[Source]]:
    assert isinstance(model.writer, TextWriter)
    rows, prompts = model._prompts(list(memories), list(content), False)
    return choose(model, model.writer, rows, prompts)[1]


def plain(model: MemoryModel, memory: Memory, question: str, most: int) -> list[Source]:
    """Each of the chunks that score best in a memory that holds nothing else, read by a call of its own."""
    made: list[Source] = []
    for write, score in model.search(memory, message(question), k=most):
        alone = memory.fork()
        for record in memory.writes:
            if record.id != write:
                model.forget(alone, record.id)
        settings, model.config = (
            model.config,
            model.config.replace(retrieval=RetrievalConfig(min_score=None, refusal=None)),
        )
        refusing = model.read(alone, message(question)).logits[0, -1].softmax(-1)
        model.config = settings
        made.append((write, sigmoid(logit(score) - logit(float(refusing[refusal_token(model)])))))
    return sorted(made, key=lambda source: -source[1])


@pytest.mark.parametrize("most", [1, 3, 9])
def test_chunks_are_tried_one_by_one_as_by_calls_of_their_own(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, memory = told(rerank=most)
    monkeypatch.setattr(choosing, "_AT_ONCE", 4)
    found = chosen(model, [memory] * 3, [message(question) for question in ASKED])
    for question, sources in zip(ASKED, found, strict=True):
        expected = plain(model, memory, question, most)
        assert [write for write, _ in sources] == [write for write, _ in expected]
        for (_, score), (_, other) in zip(sources, expected, strict=True):
            assert score == pytest.approx(other, rel=2e-5)


def test_the_best_decides_what_is_read_beside_it() -> None:
    model, memory = told(rerank=9)
    [sources] = chosen(model, [memory], [message(ASKED[0])])
    share = (sources[1][1] + sources[2][1]) / 2 / sources[0][1]
    model.config = model.config.replace(retrieval=model.config.retrieval.replace(near_best=share))
    assert chosen(model, [memory], [message(ASKED[0])]) == [sources[:2]]
    answer = model.ask(memory, ASKED[0], max_new_tokens=4)
    assert answer.sources in ([], sources[:2])


def test_rows_that_are_no_conversation_or_have_no_memory_are_not_tried() -> None:
    model, memory = told(rerank=2)
    plainly, empty, asked = chosen(
        model, [memory, model.new_memory(), memory], [ASKED[0], message(ASKED[0]), message(ASKED[1])]
    )
    assert len(plainly) == 1 + len(TEXTS) and empty == [] and len(asked) == 2
    model.config = model.config.replace(retrieval=RetrievalConfig(min_score=0.0, rerank=2))  # nobody can refuse
    assert len(chosen(model, [memory], [message(ASKED[1])])[0]) == 1 + len(TEXTS)


def test_a_chunk_below_the_least_score_or_too_long_is_not_tried() -> None:
    model, memory = told(rerank=9)
    scores = [score for _, score in model.search(memory, message(ASKED[1]), k=9)]
    least = (scores[1] + scores[2]) / 2
    model.config = model.config.replace(retrieval=model.config.retrieval.replace(min_score=least))
    assert len(chosen(model, [memory], [message(ASKED[1])])[0]) == 2
    longest = max(chunk.tokens for chunk in memory.chunks or ())
    model.config = model.config.replace(
        retrieval=RetrievalConfig(min_score=0.0, refusal="Oslo", rerank=9, slots=longest - 1)
    )
    [sources] = chosen(model, [memory], [message(ASKED[1])])
    sizes = {chunk.write: chunk.tokens for chunk in memory.chunks or ()}
    assert sources and sum(sizes[write] for write, _ in sources) < longest


def test_rerank_counts_chunks() -> None:
    with pytest.raises(InvalidInputError, match="rerank"):
        RetrievalConfig(rerank=0)


def test_trying_leaves_no_trace_in_the_memory() -> None:
    model, memory = told(rerank=3)
    before = model.inspect(memory)
    with torch.random.fork_rng():
        state = torch.random.get_rng_state()
        chosen(model, [memory], [message(ASKED[2])])
        assert torch.equal(torch.random.get_rng_state(), state)
    assert model.inspect(memory) == before
