"""Which chunks conversations read, once the reader has been shown each by itself."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from remanence import Memory, MemoryModel
from remanence.config import RetrievalConfig, logit, sigmoid
from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.model import choosing
from remanence.model.choosing import Source, _reranked, choose, refusal_token, scores, sources_of
from remanence.model.formats.adapters import without
from remanence.model.prefix_store import SlotCache
from remanence.model.text import TextPrefixCache, TextWriter
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
    return choose(model, model.writer, rows, prompts).sources


def plain(model: MemoryModel, memory: Memory, question: str, most: int) -> list[tuple[float, int, float]]:
    """Weight, write and score of each of the chunks that score best, read by a call of its own in a memory that holds
    nothing else; best first."""
    made: list[tuple[float, int, float]] = []
    settings = model.config
    for write, score in model.search(memory, message(question), k=most):
        alone = memory.fork()
        for record in memory.writes:
            if record.id != write:
                model.forget(alone, record.id)
        model.config = settings.replace(retrieval=RetrievalConfig(min_score=None, refusal=None))
        refusing = model.read(alone, message(question)).logits[0, -1].softmax(-1)
        model.config = settings
        made.append((sigmoid(logit(score) - logit(float(refusing[refusal_token(model)]))), write, score))
    return sorted(made, reverse=True)


@pytest.mark.parametrize("most", [2, 3, 9])
def test_chunks_are_tried_one_by_one_as_by_calls_of_their_own(most: int) -> None:
    model, memory = told(rerank=most)
    found = chosen(model, [memory] * 3, [message(question) for question in ASKED])
    for question, sources in zip(ASKED, found, strict=True):
        assert sources == [(write, score) for _, write, score in plain(model, memory, question, most)]


def test_the_best_decides_what_is_read_beside_it() -> None:
    model, memory = told(rerank=9)
    first, second, third, *_ = plain(model, memory, ASKED[0], 9)
    share = (second[0] + third[0]) / 2 / first[0]
    model.config = model.config.replace(retrieval=model.config.retrieval.replace(near_best=share))
    assert isinstance(model.writer, TextWriter)
    rows, prompts = model._prompts([memory], [message(ASKED[0])], False)
    candidates = scores(model.writer, rows, prompts)[0]
    read, _ = _reranked(model, model.writer, rows[0], prompts[0], candidates)
    assert sources_of(read) == [(write, score) for _, write, score in (first, second)]


@pytest.mark.parametrize("beams", [1, 2])
def test_an_answer_goes_on_with_the_pass_in_which_its_chunk_was_tried(
    beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, memory = told(rerank=9)
    first, second, *_ = plain(model, memory, ASKED[0], 9)
    share = (1 + second[0] / first[0]) / 2
    monkeypatch.setattr(RetrievalConfig, "least", lambda *given, **options: 0.0)
    model.config = model.config.replace(retrieval=model.config.retrieval.replace(near_best=share, found_bias=99.0))
    options = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False, "eos_token_id": None}
    going: list[int] = []

    def plainly(cache: TextPrefixCache, other: TextPrefixCache, row: int) -> None:
        going.append(row)

    on = model.generate(memory, message(ASKED[0]), **options)
    scored = model.generate(memory, message(ASKED[0]), output_scores=True, return_dict_in_generate=True, **options)
    monkeypatch.setattr(TextPrefixCache, "go_on", plainly)
    assert on == model.generate(memory, message(ASKED[0]), **options)
    again = model.generate(memory, message(ASKED[0]), output_scores=True, return_dict_in_generate=True, **options)
    assert len(going) == 2
    torch.testing.assert_close(torch.stack(scored.scores), torch.stack(again.scores), atol=1e-5, rtol=0)


def test_rows_that_are_no_conversation_or_have_no_memory_are_not_tried() -> None:
    model, memory = told(rerank=2)
    plainly, empty, asked = chosen(
        model, [memory, model.new_memory(), memory], [ASKED[0], message(ASKED[0]), message(ASKED[1])]
    )
    assert len(plainly) == 1 + len(TEXTS) and empty == [] and len(asked) == 2
    model.config = model.config.replace(retrieval=RetrievalConfig(min_score=0.0, rerank=2))  # nobody can refuse
    assert len(chosen(model, [memory], [message(ASKED[1])])[0]) == 1 + len(TEXTS)


def test_what_is_read_alone_anyway_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    model, memory = told(rerank=9)
    model.config = model.config.replace(retrieval=model.config.retrieval.replace(near_best=1.0))
    monkeypatch.setattr(choosing, "prefix", lambda *given, **options: pytest.fail("a chunk was tried"))
    assert len(chosen(model, [memory], [message(ASKED[1])])[0]) == 1


def test_a_reader_that_says_what_is_no_number_is_named() -> None:
    model, memory = told(rerank=3)
    with torch.no_grad():
        for name, parameter in model.hf.named_parameters():
            if "lora_B" in name:
                parameter.fill_(float("nan"))
    with pytest.raises(CorruptMemoryError, match="not numbers"):
        chosen(model, [memory], [message(ASKED[1])])


@pytest.mark.parametrize("changes", [{"min_score": None}, {"refusal": None}, {"rerank": None}])
def test_nothing_is_tried_that_is_read_whatever_the_reader_says(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, memory = told(rerank=2)
    model.config = model.config.replace(retrieval=model.config.retrieval.replace(**changes))
    monkeypatch.setattr(choosing, "_reranked", lambda *given: pytest.fail("a chunk was tried"))
    assert len(chosen(model, [memory], [message(ASKED[1])])[0]) == 1 + len(TEXTS)


def test_a_long_history_is_not_computed_once_for_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    model, memory = told(rerank=3)
    rest = len(model._prompts(memory, message(ASKED[1]), False)[1][0].rest)
    for most, read in ((3 * rest, 3), (3 * rest - 1, 1 + len(TEXTS))):
        monkeypatch.setattr(choosing, "_TRIED", most)
        assert len(chosen(model, [memory], [message(ASKED[1])])[0]) == read


def test_chunks_that_are_not_encoded_yet_are_so_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, memory = told(rerank=9)
    assert isinstance(model.writer, TextWriter)
    model.writer.cache = SlotCache(2**20)
    passes: list[int] = []
    encode = model.writer.encode
    monkeypatch.setattr(model.writer, "encode", lambda texts: passes.append(len(texts)) or encode(texts))
    chosen(model, [memory], [message(ASKED[1])])
    assert passes == [1 + len(TEXTS)]


def test_without_a_retriever_nothing_is_tried() -> None:
    config = chatting(rerank=4)[0].config
    measured = config.replace(retrieval=config.retrieval.replace(min_score=0.1))
    assert without(measured, {"retriever"}).retrieval.rerank is None
    assert without(measured, {"reader"}).retrieval.rerank == 4


def test_rerank_counts_chunks() -> None:
    with pytest.raises(InvalidInputError, match="rerank"):
        RetrievalConfig(rerank=1)


def test_trying_leaves_no_trace_in_the_memory() -> None:
    model, memory = told(rerank=3)
    before = model.inspect(memory)
    with torch.random.fork_rng():
        state = torch.random.get_rng_state()
        chosen(model, [memory], [message(ASKED[2])])
        assert torch.equal(torch.random.get_rng_state(), state)
    assert model.inspect(memory) == before
