"""Every option of transformers' `generate` works with memory, each row with its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)
from transformers.generation.streamers import BaseStreamer

from remanence import Memory, MemoryModel
from remanence.errors import InvalidInputError
from tests.support import tiny
from tests.support.models import KINDS, told, with_longterm
from tests.support.tiny import ids, with_memory, with_text

TEXT = tiny.SLOTS  # tokens of the texts that become memories
HEAD = 1  # token in front of what a model without a tokenizer reads of a text memory
CLOSE = {"atol": 2e-5, "rtol": 0.0}
GREEDY = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])


class Even(LogitsProcessor):
    """Allows even tokens only."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(torch.arange(scores.shape[-1]) % 2 == 1, -torch.inf)


class After(StoppingCriteria):
    """Stops every row after so many calls."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self.left -= 1
        return torch.full((len(input_ids),), self.left <= 0)


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "until the end token": {**GREEDY, "eos_token_id": list(range(0, tiny.VOCABULARY, 5))},
    "sampling": {"do_sample": True, "max_new_tokens": 12, "top_k": 20, "top_p": 0.9, "temperature": 1.3},
    "sampling several": {"do_sample": True, "max_new_tokens": 12, "num_return_sequences": 3, "eos_token_id": None},
    "min_p": {"do_sample": True, "max_new_tokens": 12, "min_p": 0.05, "eos_token_id": None},
    "beams": {**GREEDY, "num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {**GREEDY, "num_beams": 3, "do_sample": True},
    "beams of any length": {**GREEDY, "num_beams": 4, "eos_token_id": [7, 8, 9], "length_penalty": 0.6},
    "assisted by the prompt": {**GREEDY, "prompt_lookup_num_tokens": 3},
    "prefill in chunks": {**GREEDY, "prefill_chunk_size": 4},
    "a processor": {**GREEDY, "logits_processor": LogitsProcessorList([Even()])},
    "no processor": {**GREEDY, "logits_processor": None},
    "forbidden tokens": {**GREEDY, "suppress_tokens": list(range(30))},
    "a configuration": {"generation_config": GenerationConfig(max_new_tokens=30, do_sample=False, pad_token_id=0)},
}


@contextmanager
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        yield


def memory_of(model: MemoryModel, text: Tensor) -> Memory:
    """A learned memory that is this text."""
    whole = model.hf(text[None], output_hidden_states=True)
    return model.memory_from_slots(torch.cat(whole.hidden_states[: tiny.LAYERS]).detach())


@pytest.mark.parametrize("option", sorted(OPTIONS))
@pytest.mark.parametrize("prompt", [ids(11), ids(11).repeat(2)], ids=["short prompt", "prompt with repetitions"])
def test_generate_from_learned_slots_of_a_text_continues_like_the_text_itself(option: str, prompt: Tensor) -> None:
    model = with_memory(bos=False)
    text, options = ids(TEXT, seed=8), OPTIONS[option]
    with seeded():
        expected = model.hf.generate(torch.cat([text, prompt])[None], **options)[:, TEXT:]
    with seeded():
        got = model.generate(memory_of(model, text), prompt, **options)
    assert got.tolist() == expected.tolist()
    assert got.shape[1] > len(prompt)


@pytest.mark.parametrize("option", sorted(OPTIONS))
@pytest.mark.parametrize("prompt", [ids(11), ids(11).repeat(2)], ids=["short prompt", "prompt with repetitions"])
def test_generate_from_text_slots_continues_like_the_text_itself(option: str, prompt: Tensor) -> None:
    model = with_text()
    text, options = ids(TEXT, seed=8), OPTIONS[option]
    memory = model.new_memory()
    model.write(memory, text)
    with seeded():
        whole = torch.cat([torch.tensor([HEAD]), text, prompt])[None]
        expected = model.hf.generate(whole, **options)[:, 1 + TEXT :]
    with seeded():
        got = model.generate(memory, prompt, **options)
    assert got.tolist() == expected.tolist()
    assert got.shape[1] > len(prompt)


@every_kind
def test_generate_stops_by_a_criterion(kind: str) -> None:
    model = KINDS[kind]()
    memory = told(model)
    out = model.generate(memory, ids(5), **GREEDY, stopping_criteria=StoppingCriteriaList([After(4)]))
    assert out.shape == (1, 5 + 4)
    length = 7 if kind != "text" else 7 + HEAD  # the criterion counts what the decoder reads
    out = model.generate(memory, ids(5), **GREEDY, stopping_criteria=[MaxLengthCriteria(length)])
    assert out.shape == (1, 7)


@every_attention
@every_kind
def test_generate_without_sampling_is_a_loop_of_reads(kind: str, attention: str) -> None:
    model = KINDS[kind](tiny.decoder(attention=attention))
    memory, sequence = told(model, longterm=False) if kind in ("longterm", "adapters") else told(model), ids(7)
    out = model.generate(memory, sequence, **GREEDY, return_dict_in_generate=True, output_logits=True)
    for step in range(12):
        logits = model.read(memory, sequence).logits
        assert logits is not None
        torch.testing.assert_close(out.logits[step][0], logits[0, -1], **CLOSE)
        sequence = torch.cat([sequence, logits[0, -1:].argmax(dim=-1)])
    assert out.sequences[0].tolist() == sequence.tolist()


@every_attention
@pytest.mark.parametrize("option", ["greedy", "until the end token", "beams", "prefill in chunks", "a processor"])
@pytest.mark.parametrize("kind", ["pool", "longterm", "text"])
def test_generate_gives_each_row_its_own_memory(kind: str, attention: str, option: str) -> None:
    if kind == "longterm" and option == "prefill in chunks":
        pytest.skip("what a prompt retrieves depends on all of it")
    model = KINDS[kind](tiny.decoder(attention=attention))
    memories = [told(model, seed, writes) for seed, writes in enumerate([2, 0, 5, 1])]
    prompts = [ids(length, seed=length) for length in (6, 4, 9, 1)]
    options = {**OPTIONS[option], "return_dict_in_generate": True}
    several = options.get("num_return_sequences", 1)
    together = model.generate(memories, prompts, **options).sequences[:, max(map(len, prompts)) :]
    for row, (memory, prompt) in enumerate(zip(memories, prompts, strict=True)):
        alone = model.generate(memory, prompt, **options).sequences[:, len(prompt) :]
        rows = together[row * several : (row + 1) * several]
        assert rows[:, : alone.shape[1]].tolist() == alone.tolist()
        assert set(rows[:, alone.shape[1] :].flatten().tolist()) <= {0}  # padding behind the end token


@every_kind
@pytest.mark.parametrize("option", ["greedy", "beams", "sampling several"])
def test_generate_gives_rows_that_are_alike_in_length_what_each_has_alone(kind: str, option: str) -> None:
    model = KINDS[kind]()
    memories, prompts = [told(model, seed) for seed in range(2)], [ids(7, seed=seed) for seed in range(2)]
    options = {**OPTIONS[option], "do_sample": False} if option != "sampling several" else {**OPTIONS[option]}
    if option == "sampling several":
        options |= {"logits_processor": LogitsProcessorList([Even()]), "top_k": 1}  # there is one way to draw
    several = options.get("num_return_sequences", 1)
    together = model.generate(memories, prompts, **options)
    for row, (memory, prompt) in enumerate(zip(memories, prompts, strict=True)):
        alone = model.generate(memory, prompt, **options)
        assert together[row * several : (row + 1) * several].tolist() == alone.tolist()


@every_attention
@every_kind
def test_generate_takes_rows_that_the_caller_padded(kind: str, attention: str) -> None:
    model = KINDS[kind](tiny.decoder(attention=attention))
    memories = [told(model, seed) for seed in range(3)]
    prompts = [ids(length, seed=length) for length in (6, 2, 9)]
    padded = torch.full((3, 9), 0)
    mask = torch.zeros_like(padded)
    for row, prompt in enumerate(prompts):
        padded[row, -len(prompt) :], mask[row, -len(prompt) :] = prompt, 1
    expected = model.generate(memories, prompts, **GREEDY)
    assert torch.equal(model.generate(memories, padded, attention_mask=mask, **GREEDY), expected)
    assert torch.equal(model.generate(memories, {"input_ids": padded, "attention_mask": mask}, **GREEDY), expected)
    assert not torch.equal(model.generate(memories, padded, **GREEDY), expected)


@every_kind
@pytest.mark.parametrize("option", ["assisted by the prompt", "beams"])
def test_generate_does_not_read_the_padding_of_one_row(kind: str, option: str) -> None:
    model = KINDS[kind]()
    memory, prompt = told(model), ids(6).repeat(2)
    padded = torch.cat([torch.zeros(3, dtype=torch.long), prompt])
    out = model.generate(memory, padded, attention_mask=(torch.arange(15) >= 3).long()[None], **OPTIONS[option])
    assert torch.equal(out[:, -24:], model.generate(memory, prompt, **OPTIONS[option]))


@every_kind
@pytest.mark.parametrize("has_memory", [False, True])
def test_generate_with_an_assistant_gives_what_it_gives_without(kind: str, has_memory: bool) -> None:
    model, assistant = KINDS[kind](), tiny.decoder(num_hidden_layers=2)
    if has_memory:
        with_memory(assistant)
    memory, prompt = told(model), ids(6)
    expected = model.generate(memory, prompt, **GREEDY)
    assert torch.equal(model.generate(memory, prompt, assistant_model=assistant, **GREEDY), expected)


@pytest.mark.parametrize("by", ["assistant_model", "prompt_lookup_num_tokens"])
def test_generate_does_not_retrieve_again_by_tokens_that_may_be_taken_back(by: str) -> None:
    model = with_longterm()
    assisted: dict[str, Any] = {by: tiny.decoder() if by == "assistant_model" else 3}
    with pytest.raises(InvalidInputError, match="retrieve_every counts the tokens of the text"):
        model.generate(told(model), ids(8), retrieve_every=2, **assisted, **GREEDY)


@every_kind
def test_generate_samples_by_the_global_random_state(kind: str) -> None:
    model = KINDS[kind]()
    memories = [told(model, seed) for seed in range(2)]
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(model.generate(memories, [ids(4), ids(6)], max_new_tokens=12, do_sample=True).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


class Collected(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


@every_kind
def test_generate_streams_every_token(kind: str) -> None:
    model = KINDS[kind]()
    streamer = Collected()
    out = model.generate(told(model), ids(5), **GREEDY, streamer=streamer)
    assert streamer.tokens[-17:] == out[0].tolist() and streamer.ended


@pytest.fixture(params=[with_memory, with_text], ids=["learned", "text"])
def reader(request: pytest.FixtureRequest) -> MemoryModel:
    """A model that takes text."""
    made: MemoryModel = request.param(tiny.decoder(vocab_size=300), tokenizer=tiny.tokenizer())
    return made


def test_generate_gives_text_for_text(reader: MemoryModel, capsys: pytest.CaptureFixture[str]) -> None:
    memory = reader.new_memory()
    reader.write(memory, "Alice Brown was born in Oslo.")
    prompt_ids = reader.tokenizer("She works")["input_ids"]
    continued = reader.generate(memory, prompt_ids, **GREEDY)[0, len(prompt_ids) :]
    expected = reader.tokenizer.decode(continued, skip_special_tokens=True)
    assert reader.generate(memory, "She works", **GREEDY) == expected
    assert reader.generate([memory, memory.fork()], ["She works", "She works"], **GREEDY) == [expected] * 2
    several = reader.generate(memory, "She works", **GREEDY, num_beams=2, num_return_sequences=2)
    assert len(several) == 2 and all(isinstance(text, str) for text in several)
    reader.generate(memory, "She works", **GREEDY, streamer=TextStreamer(reader.tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.strip() == reader.tokenizer.decode(continued).strip()


def test_generate_ends_at_a_stop_string(reader: MemoryModel) -> None:
    memory = reader.new_memory()
    reader.write(memory, "Alice Brown was born in Oslo.")
    prompt = reader.tokenizer("She works")["input_ids"]
    whole = reader.generate(memory, prompt, **GREEDY)[0].tolist()
    end = len(prompt) + 4
    stop = reader.tokenizer.decode(whole[end - 1 : end])
    first = next(n for n in range(len(prompt) + 1, end + 1) if stop in reader.tokenizer.decode(whole[len(prompt) : n]))
    assert reader.generate(memory, prompt, **GREEDY, stop_strings=[stop])[0].tolist() == whole[:first]


def test_generate_returns_an_output_object_when_asked_for() -> None:
    model = with_memory()
    memory = told(model)
    out = model.generate(
        memory, ids(5), **GREEDY, return_dict_in_generate=True, output_scores=True, output_hidden_states=True
    )
    assert out.sequences.shape == (1, 17) and len(out.scores) == len(out.hidden_states) == 12
    assert out.past_key_values.get_seq_length() == 1 + tiny.SLOTS + 17 - 1  # the last token was never read


@pytest.mark.parametrize("name", ["past_key_values", "inputs", "input_ids", "inputs_embeds", "position_ids"])
@every_kind
def test_generate_refuses_what_memory_sets_itself(kind: str, name: str) -> None:
    model = KINDS[kind]()
    with pytest.raises(InvalidInputError, match=f"generate sets {name} itself"):
        model.generate(told(model), ids(4), **{name: None})


@every_kind
def test_generate_refuses_to_read_without_a_cache(kind: str) -> None:
    model = KINDS[kind]()
    with pytest.raises(InvalidInputError, match="use_cache"):
        model.generate(told(model), ids(4), use_cache=False)


def test_generate_does_not_read_in_parts_what_retrieves() -> None:
    model = with_longterm()
    memory = told(model)
    with pytest.raises(InvalidInputError, match="leave out prefill_chunk_size"):
        model.generate(memory, ids(8), max_new_tokens=1, prefill_chunk_size=4)


@every_kind
def test_generate_sees_a_write_that_was_made_while_the_last_one_ran(kind: str) -> None:
    model = KINDS[kind]()
    memory = told(model)

    class Writes(BaseStreamer):
        def put(self, value: Tensor) -> None:
            model.write(memory, ids(30, seed=3))

        def end(self) -> None:
            pass

    asked = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    before = model.generate(memory, ids(5), **asked).logits[0]
    count = memory.write_count
    model.generate(memory, ids(5), max_new_tokens=1, do_sample=False, streamer=Writes())
    assert memory.write_count > count
    after = model.generate(memory, ids(5), **asked).logits[0]
    torch.testing.assert_close(after, model.read(memory, ids(5)).logits[:, -1], **CLOSE)
    assert not torch.allclose(after, before, atol=1e-3)


@every_kind
def test_generate_lets_a_streamer_read_other_memories(kind: str) -> None:
    model = KINDS[kind]()
    memories, prompt = [told(model), told(model, 1), model.new_memory()], ids(5)
    right, read = model.generate(memories[0], prompt, **GREEDY), list[Tensor]()

    class Reads(BaseStreamer):
        def put(self, value: Tensor) -> None:
            read.extend([model.read(memory, prompt).logits for memory in memories[1:]])
            read.append(model(prompt[None]).logits)

        def end(self) -> None:
            pass

    assert torch.equal(model.generate(memories[0], prompt, **GREEDY, streamer=Reads()), right)
    expected = [model.read(memories[1], prompt).logits, model.hf(prompt[None]).logits]
    for one, other, stock in zip(read[::3], read[1::3], read[2::3], strict=True):
        assert torch.equal(one, expected[0]) and torch.equal(other, expected[1]) and torch.equal(stock, expected[1])


@every_kind
def test_generate_mixes_calls_inside_and_outside_inference_mode(kind: str) -> None:
    model = KINDS[kind]()
    memory = told(model)
    asked = {"max_new_tokens": 2, "do_sample": False}
    with torch.inference_mode():
        model.write(memory, ids(40))
        inside = model.generate(memory, ids(5), **asked)
    assert torch.equal(model.generate(memory, ids(5), **asked), inside)
    model.write(memory, ids(40, seed=1))
