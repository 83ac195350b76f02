"""Continuations behind a memory are scored as one plain pass over the whole text scores them."""

from typing import Any

import pytest
import torch

from remanence import Memory, MemoryModel
from remanence.config import LongTermConfig
from remanence.evaluation.scoring import complete, room, score, score_tokens
from tests.support.tiny import decoder, tokenizer, with_memory, with_text

TEXTS = ["Alice Brown was born in Oslo, and works", "Bob Green lives in Paris", "Carol"]
CONTINUATIONS = [" as a baker", " and", " Smith was born in Bergen, and lives in Oslo"]


def model_of(**settings: Any) -> MemoryModel:
    return with_memory(decoder(vocab_size=300, num_hidden_layers=2), tokenizer=tokenizer(), **settings)


def written(model: MemoryModel) -> Memory:
    memory = model.new_memory()
    for text in TEXTS * 3:
        model.write(memory, text)
    return memory


def ids_of(model: MemoryModel, texts: list[str]) -> list[list[int]]:
    return [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@pytest.mark.parametrize("remembers", [True, False])
def test_a_score_is_the_sum_of_log_softmax_over_one_pass(remembers: bool) -> None:
    model = model_of()
    memory = written(model) if remembers else Memory(model.spec)
    pairs = list(zip(ids_of(model, TEXTS), ids_of(model, CONTINUATIONS), strict=True))
    for (total, _), (context, continuation) in zip(score(model, memory, pairs), pairs, strict=True):
        logits = model.read(memory, context + continuation).logits
        assert logits is not None
        each = logits[0, len(context) - 1 : -1].log_softmax(dim=-1)
        plain = sum(float(each[place, token]) for place, token in enumerate(continuation))
        assert total == pytest.approx(plain, abs=1e-3)


def test_a_score_behind_text_slots_is_that_of_one_pass() -> None:
    model = with_text(decoder(vocab_size=300, num_hidden_layers=2), tokenizer())
    memory = written(model)
    pairs = list(zip(ids_of(model, TEXTS), ids_of(model, CONTINUATIONS), strict=True))
    found, read = score_tokens(model, memory, pairs)
    assert read and not score_tokens(model, model.new_memory(), pairs)[1]
    for one, (context, continuation) in zip(found, pairs, strict=True):
        logits = model.read(memory, context + continuation).logits[0, len(context) - 1 : -1]
        each = logits.log_softmax(dim=-1)
        plain = [float(each[place, token]) for place, token in enumerate(continuation)]
        assert one.likelihoods == pytest.approx(plain, abs=1e-3)
        assert one.greedy == (logits.argmax(-1) == torch.tensor(continuation)).tolist()


def test_what_greedy_decoding_gives_is_greedy_and_nothing_else_is() -> None:
    model = model_of()
    memory = written(model)
    contexts = ids_of(model, TEXTS)
    told = [model.generate(memory, context, max_new_tokens=5, eos_token_id=None)[0].tolist() for context in contexts]
    best = [out[len(context) :] for out, context in zip(told, contexts, strict=True)]
    assert [greedy for _, greedy in score(model, memory, list(zip(contexts, best, strict=True)))] == [True] * 3
    other = [[*tokens[:-1], tokens[-1] ^ 1] for tokens in best]
    assert [greedy for _, greedy in score(model, memory, list(zip(contexts, other, strict=True)))] == [False] * 3


def test_a_score_hangs_on_what_the_context_alone_retrieves() -> None:
    model = model_of(longterm=LongTermConfig(retrieved=4), retrieval_size=8)
    memory = written(model)
    context, continuation = ids_of(model, [TEXTS[0]])[0], ids_of(model, [CONTINUATIONS[2]])[0]
    out = model.generate(
        memory,
        context,
        max_new_tokens=len(continuation),
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
        prefix_allowed_tokens_fn=lambda _, ids: [continuation[len(ids) - len(context)]],
    )
    assert out.sequences[0, len(context) :].tolist() == continuation
    each = torch.cat(out.logits).log_softmax(dim=-1)
    plain = sum(float(each[place, token]) for place, token in enumerate(continuation))
    assert score(model, memory, [(context, continuation)])[0][0] == pytest.approx(plain, abs=1e-3)
    other = score(model, memory.pool_only(), [(context, continuation)])[0][0]
    assert abs(other - plain) > 1e-2


def test_a_completion_ends_before_the_first_of_its_stop_strings() -> None:
    model = model_of()
    memory = written(model)
    prompts = ids_of(model, TEXTS)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    whole = complete(model, memory, prompts, [], **options)
    assert whole == [model.generate(memory, text, **options) for text in TEXTS]
    stops = [whole[0][4:6], whole[1][3]]
    cut = complete(model, memory, prompts, stops, **options)
    for text, short in zip(whole, cut, strict=True):
        places = [text.find(stop) for stop in stops if stop in text]
        assert short == (text[: min(places)] if places else text)


def test_reading_leaves_the_memory_as_it_was() -> None:
    model = model_of()
    memory = written(model)
    before = memory.fork()
    score(model, memory, [([5], [6, 7])] * 2)
    complete(model, memory, [[5]] * 2, [], max_new_tokens=2)
    assert memory.pool.keys.equal(before.pool.keys) and memory.write_count == before.write_count


def test_room_is_what_a_full_memory_leaves() -> None:
    assert room(model_of(), written=False) == 256
    assert room(model_of(), written=True) == 256 - 1 - 24
    assert room(model_of(longterm=LongTermConfig(retrieved=8), retrieval_size=8), written=True) == 256 - 1 - 8 - 24
