"""Continuations behind a memory are scored as one plain pass over the whole text scores them."""

from typing import Any

import pytest
import torch

from remanence import Memory, MemoryModel
from remanence.config import LongTermConfig, LoraSettings
from remanence.evaluation.scoring import Scored, room, score_tokens
from remanence.model.lora import adapter_parameters
from tests.support.tiny import decoder, tokenizer, with_memory, with_text

TEXTS = ["Alice Brown was born in Oslo, and works", "Bob Green lives in Paris", "Carol"]
CONTINUATIONS = [" as a baker", " and", " Smith was born in Bergen, and lives in Oslo"]
LORA = LoraSettings(r=2, lora_alpha=4.0, target_modules=("q_proj", "v_proj", "down_proj"))


def model_of(**settings: Any) -> MemoryModel:
    return with_memory(decoder(vocab_size=300, num_hidden_layers=2), tokenizer=tokenizer(), **settings)


def text_model() -> MemoryModel:
    return with_text(decoder(vocab_size=300, num_hidden_layers=2), tokenizer())


def written(model: MemoryModel) -> Memory:
    memory = model.new_memory()
    for text in TEXTS * 3:
        model.write(memory, text)
    return memory


def ids_of(model: MemoryModel, texts: list[str]) -> list[list[int]]:
    return [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def of_logits(logits: torch.Tensor, continuation: list[int]) -> Scored:  # [T, V]
    each = logits.log_softmax(dim=-1)
    likelihoods = [float(each[place, token]) for place, token in enumerate(continuation)]
    return Scored(likelihoods, (logits.argmax(-1) == torch.tensor(continuation)).tolist())


@pytest.mark.parametrize("kind", ["learned", "text", "never written"])
def test_scores_are_those_of_one_pass_over_context_and_continuation(kind: str) -> None:
    model = text_model() if kind == "text" else model_of()
    memory = Memory(model.spec) if kind == "never written" else written(model)
    pairs = list(zip(ids_of(model, TEXTS), ids_of(model, CONTINUATIONS), strict=True))
    found, read = score_tokens(model, memory, pairs)
    assert read is (kind != "never written")
    for one, (context, continuation) in zip(found, pairs, strict=True):
        expected = of_logits(model.read(memory, context + continuation).logits[0, len(context) - 1 : -1], continuation)
        assert one.likelihoods == pytest.approx(expected.likelihoods, abs=1e-3) and one.greedy == expected.greedy


def test_what_greedy_decoding_gives_is_greedy_and_nothing_else_is() -> None:
    model = model_of()
    memory = written(model)
    contexts = ids_of(model, TEXTS)
    told = [model.generate(memory, context, max_new_tokens=5, eos_token_id=None)[0].tolist() for context in contexts]
    best = [out[len(context) :] for out, context in zip(told, contexts, strict=True)]
    other = [[*tokens[:-1], tokens[-1] ^ 1] for tokens in best]
    for rest, last in ((best, True), (other, False)):
        found, _ = score_tokens(model, memory, list(zip(contexts, rest, strict=True)))
        assert [one.greedy for one in found] == [[True] * 4 + [last]] * 3


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
    [found], [other] = (score_tokens(model, one, [(context, continuation)])[0] for one in (memory, memory.pool_only()))
    assert sum(found.likelihoods) == pytest.approx(plain, abs=1e-3) and abs(sum(other.likelihoods) - plain) > 1e-2


@pytest.mark.parametrize("reads", [False, True])
def test_scores_are_the_stock_models_where_nothing_is_read(reads: bool) -> None:
    hf = decoder(vocab_size=300)
    context, rest = [5, 6, 7, 8], [9, 10, 11]
    with torch.no_grad():
        stock = of_logits(hf(torch.tensor([context + rest])).logits[0, 3:-1], rest)
    model = MemoryModel.attach(hf, tokenizer(), lora=LORA, chunk=64, min_score=None if reads else 1.0)
    for _, parameter in adapter_parameters(model.hf):
        torch.nn.init.normal_(parameter)
    memory = model.new_memory()
    model.write(memory, "Alice Brown was born in Oslo.")
    [scored], read = score_tokens(model, memory, [(context, rest)])
    assert read is reads
    assert (scored.likelihoods == pytest.approx(stock.likelihoods, abs=1e-5)) is not reads


def test_reading_leaves_the_memory_as_it_was() -> None:
    model = model_of()
    memory = written(model)
    before = memory.fork()
    score_tokens(model, memory, [([5], [6, 7])] * 2)
    assert memory.pool.keys.equal(before.pool.keys) and memory.write_count == before.write_count


def test_room_is_what_a_full_memory_leaves() -> None:
    assert room(model_of(), written=False) == 256
    assert room(model_of(), written=True) == 256 - 1 - 24
    assert room(model_of(longterm=LongTermConfig(retrieved=8), retrieval_size=8), written=True) == 256 - 1 - 8 - 24
    text = text_model()
    text.config = text.config.replace(retrieval=text.config.retrieval.replace(slots=100))
    assert room(text, written=True) == 256 - 100
