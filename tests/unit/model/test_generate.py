"""Every option of transformers' `generate` works with memory, each row with its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.memory import LongTermRules
from tests.support import tiny
from tests.support.tiny import ids, with_memory

TEXT = tiny.SLOTS  # tokens of the texts that become memories
CLOSE = {"atol": 1e-5, "rtol": 0.0}
GREEDY = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}
ATTENTIONS = pytest.mark.parametrize("attention", ["sdpa", "eager"])


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
    """A memory that is this text."""
    whole = model.hf(text[None], output_hidden_states=True)
    return model.memory_from_slots(torch.cat(whole.hidden_states[: tiny.LAYERS]).detach())


def written(model: MemoryModel, seed: int, writes: int = 2) -> Memory:
    memory = model.new_memory(seed)
    for number in range(writes):
        model.write(memory, ids(9 + number, seed=100 * seed + number))
    return memory


@pytest.mark.parametrize("option", sorted(OPTIONS))
@pytest.mark.parametrize("prompt", [ids(11), ids(11).repeat(2)], ids=["short prompt", "prompt with repetitions"])
def test_a_memory_of_a_text_continues_like_the_text_itself(option: str, prompt: Tensor) -> None:
    model = with_memory(bos=False)
    text = ids(TEXT, seed=8)
    options = OPTIONS[option]
    with seeded():
        expected = model.hf.generate(torch.cat([text, prompt])[None], **options)[:, TEXT:]
    with seeded():
        got = model.generate(memory_of(model, text), prompt, **options)
    assert got.tolist() == expected.tolist()
    assert got.shape[1] > len(prompt)


def test_a_criterion_stops_generation() -> None:
    model = with_memory()
    out = model.generate(written(model, 0), ids(5), **GREEDY, stopping_criteria=StoppingCriteriaList([After(4)]))
    assert out.shape == (1, 5 + 4)
    out = model.generate(written(model, 0), ids(5), **GREEDY, stopping_criteria=[MaxLengthCriteria(7)])
    assert out.shape == (1, 7)


@ATTENTIONS
def test_greedy_generation_is_a_loop_of_reads(attention: str) -> None:
    model = with_memory(tiny.decoder(attention=attention))
    memory, sequence = written(model, 0), ids(7)
    out = model.generate(memory, sequence, **GREEDY, return_dict_in_generate=True, output_logits=True)
    for step in range(12):
        logits = model.read(memory, sequence).logits
        assert logits is not None
        torch.testing.assert_close(out.logits[step][0], logits[0, -1], **CLOSE)
        sequence = torch.cat([sequence, logits[0, -1:].argmax(dim=-1)])
    assert out.sequences[0].tolist() == sequence.tolist()


@ATTENTIONS
@pytest.mark.parametrize("option", ["greedy", "until the end token", "beams", "prefill in chunks", "a processor"])
def test_each_row_has_its_own_memory(attention: str, option: str) -> None:
    model = with_memory(tiny.decoder(attention=attention))
    memories = [written(model, seed, writes) for seed, writes in enumerate([2, 0, 3, 1])]
    prompts = [ids(length, seed=length) for length in (6, 4, 9, 1)]
    options = {**OPTIONS[option], "return_dict_in_generate": True}
    several = options.get("num_return_sequences", 1)
    together = model.generate(memories, prompts, **options).sequences[:, max(map(len, prompts)) :]
    for row, (memory, prompt) in enumerate(zip(memories, prompts, strict=True)):
        alone = model.generate(memory, prompt, **options).sequences[:, len(prompt) :]
        rows = together[row * several : (row + 1) * several]
        assert rows[:, : alone.shape[1]].tolist() == alone.tolist()
        assert set(rows[:, alone.shape[1] :].flatten().tolist()) <= {0}  # padding behind the end token


@ATTENTIONS
def test_rows_padded_by_the_caller_are_rows_of_their_own_length(attention: str) -> None:
    model = with_memory(tiny.decoder(attention=attention))
    memories = [written(model, seed) for seed in range(3)]
    prompts = [ids(length, seed=length) for length in (6, 2, 9)]
    padded = torch.full((3, 9), 0)
    mask = torch.zeros_like(padded)
    for row, prompt in enumerate(prompts):
        padded[row, -len(prompt) :], mask[row, -len(prompt) :] = prompt, 1
    expected = model.generate(memories, prompts, **GREEDY)
    assert torch.equal(model.generate(memories, padded, attention_mask=mask, **GREEDY), expected)
    assert not torch.equal(model.generate(memories, padded, **GREEDY), expected)


@pytest.mark.parametrize("option", ["assisted by the prompt", "prefill in chunks", "beams"])
def test_padding_stays_out_of_sight_at_every_step(option: str) -> None:
    model = with_memory()
    memory, prompt = written(model, 0), ids(6).repeat(2)
    padded = torch.cat([torch.zeros(3, dtype=torch.long), prompt])
    out = model.generate(memory, padded, attention_mask=(torch.arange(15) >= 3).long()[None], **OPTIONS[option])
    assert torch.equal(out[:, 3:], model.generate(memory, prompt, **OPTIONS[option]))


def test_sampling_follows_the_global_random_state() -> None:
    model = with_memory()
    memories = [written(model, seed) for seed in range(2)]
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


def test_a_streamer_receives_every_token() -> None:
    model = with_memory()
    streamer = Collected()
    out = model.generate(written(model, 0), ids(5), **GREEDY, streamer=streamer)
    assert streamer.tokens == out[0].tolist() and streamer.ended


@pytest.fixture
def reader() -> MemoryModel:
    """A model that takes text."""
    return with_memory(tiny.decoder(vocab_size=300), tokenizer=tiny.tokenizer())


def test_text_in_gives_text_out(reader: MemoryModel, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_stop_string_ends_generation(reader: MemoryModel) -> None:
    memory = reader.new_memory()
    reader.write(memory, "Alice Brown was born in Oslo.")
    prompt = reader.tokenizer("She works")["input_ids"]
    whole = reader.generate(memory, prompt, **GREEDY)[0].tolist()
    end = len(prompt) + 4
    stop = reader.tokenizer.decode(whole[end - 1 : end])
    first = next(n for n in range(len(prompt) + 1, end + 1) if stop in reader.tokenizer.decode(whole[len(prompt) : n]))
    assert reader.generate(memory, prompt, **GREEDY, stop_strings=[stop])[0].tolist() == whole[:first]


def test_an_output_object_is_returned_when_asked_for() -> None:
    model = with_memory()
    memory = written(model, 0)
    out = model.generate(
        memory, ids(5), **GREEDY, return_dict_in_generate=True, output_scores=True, output_hidden_states=True
    )
    assert out.sequences.shape == (1, 17) and len(out.scores) == len(out.hidden_states) == 12
    assert out.past_key_values.get_seq_length() == 1 + tiny.SLOTS + 17 - 1  # the last token was never read


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 50},
        {"max_length": 57},
        {"generation_config": GenerationConfig(max_new_tokens=50, do_sample=False, pad_token_id=0)},
        {"max_new_tokens": 50, "num_beams": 3},
        {"max_new_tokens": 50, "prefill_chunk_size": 3},
        {"max_new_tokens": 50, "prompt_lookup_num_tokens": 2},
    ],
    ids=lambda options: " ".join(options),
)
@pytest.mark.parametrize("writes", [0, 2])
def test_decoding_neither_moves_nor_changes_the_prefix(options: dict[str, Any], writes: int) -> None:
    model = with_memory()
    seen: list[list[tuple[int, int]]] = []
    prefixes: list[Tensor] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        cache = kwargs["past_key_values"]
        seen.append([(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers])
        prefixes.append(torch.stack([layer.keys[:, : cache.prefix] for layer in cache.layers]).clone())

    model.hf.register_forward_hook(look, with_kwargs=True)
    model.generate(written(model, 0, writes), ids(7), **{"do_sample": False, "eos_token_id": None, **options})
    assert len(seen) > 4 and all(pointers == seen[0] for pointers in seen)
    assert all(torch.equal(prefix, prefixes[0]) for prefix in prefixes)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_read_can_be_continued_by_hand(rows: int) -> None:
    model = with_memory()
    memories = [written(model, seed) for seed in range(rows)]
    texts = torch.stack([ids(20, seed=seed) for seed in range(rows)])
    whole = model.read(memories, texts).logits
    cache = model.read(memories, texts[:, :5]).past_key_values
    for end in (6, 9, 20):  # the buffers grow twice
        start = cache.get_seq_length() - cache.prefix
        with torch.no_grad():
            out = model.hf(texts[:, start:end], past_key_values=cache, use_cache=True)
    assert whole is not None
    torch.testing.assert_close(out.logits, whole[:, 9:], **CLOSE)


def test_reading_and_generating_change_no_memory() -> None:
    model = with_memory(keep_hidden=True)
    memories = [written(model, seed, writes) for seed, writes in enumerate([2, 0, 1])]

    def state() -> list[Any]:
        return [
            (
                {n: t.tolist() for n, t in m.pool.tensors.items()} if m.written else None,
                m.writes,
                m._generator.get_state().tolist(),
            )
            for m in memories
        ]

    before = state()
    model.read(memories, [ids(3), ids(4), ids(5)])
    model.generate(memories, [ids(3), ids(4), ids(5)], do_sample=True, num_beams=2, max_new_tokens=5)
    assert state() == before


@pytest.mark.parametrize("name", ["past_key_values", "inputs", "input_ids", "inputs_embeds"])
def test_what_memory_sets_itself_cannot_be_given(name: str) -> None:
    model = with_memory()
    with pytest.raises(InvalidInputError, match=f"generate sets {name} itself"):
        model.generate(model.new_memory(), ids(4), **{name: None})


def test_memory_is_read_through_the_cache() -> None:
    model = with_memory()
    with pytest.raises(InvalidInputError, match="use_cache"):
        model.generate(model.new_memory(), ids(4), use_cache=False)


def test_a_write_while_a_generation_runs_is_seen_by_the_next() -> None:
    model = with_memory(tiny.decoder())
    memory = model.new_memory()
    model.write(memory, ids(40))

    class Writes(BaseStreamer):
        def put(self, value: Tensor) -> None:
            model.write(memory, ids(30, seed=3))

        def end(self) -> None:
            pass

    model.generate(memory, ids(5), max_new_tokens=1, do_sample=False, streamer=Writes())
    asked = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    after = model.generate(memory, ids(5), **asked).logits[0]
    torch.testing.assert_close(after, model.read(memory, ids(5)).logits[:, -1], atol=1e-5, rtol=0)


def test_a_memory_written_under_autocast_has_the_models_dtype_and_loads(tmp_path: Path) -> None:
    model = with_memory(tiny.decoder(), longterm=LongTermRules(retrieved=4), retrieval_size=8)
    memory = model.new_memory()
    with torch.autocast("cpu", torch.bfloat16):
        model.write(memory, ids(40))
        model.read(memory, ids(5))
    assert memory.pool.keys.dtype == torch.float32
    memory.save(tmp_path / "memory")
    again = Memory.load(tmp_path / "memory")
    assert torch.equal(model.read(again, ids(5)).logits, model.read(memory, ids(5)).logits)
    fresh = with_memory(tiny.decoder(), longterm=LongTermRules(retrieved=4), retrieval_size=8)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.bos_slots(), fresh.bos_slots())


def test_retrieval_keys_that_are_no_numbers_are_refused() -> None:
    model = with_memory(tiny.decoder(), longterm=LongTermRules(retrieved=4), retrieval_size=8)
    assert model.retriever is not None
    with torch.no_grad():
        next(model.retriever.key.parameters()).fill_(torch.nan)
    memory = model.new_memory()
    with pytest.raises(CorruptMemoryError, match="not finite"):
        model.write(memory, ids(40))
    assert not memory.written


def with_longterm() -> MemoryModel:
    return with_memory(tiny.decoder(), longterm=LongTermRules(retrieved=4), retrieval_size=8)


def test_a_fork_of_a_memorys_pool_and_what_was_saved_of_it_can_be_written(tmp_path: Path) -> None:
    model = with_longterm()
    memory = model.new_memory()
    for _ in range(6):
        model.write(memory, ids(40))
    view = memory.pool_only()
    view.save(tmp_path / "view")
    for twin in (view.fork(), Memory.load(tmp_path / "view")):
        model.write(twin, ids(40, seed=2))
        assert twin.longterm is None


def test_a_prompt_that_retrieves_is_not_read_in_parts() -> None:
    model = with_longterm()
    memory = model.new_memory()
    model.write(memory, ids(40))
    with pytest.raises(InvalidInputError, match="leave out prefill_chunk_size"):
        model.generate(memory, ids(8), max_new_tokens=1, prefill_chunk_size=4)


def test_the_first_write_takes_no_ages() -> None:
    model = with_longterm()
    memory = model.new_memory()
    slots = torch.randn(tiny.LAYERS, tiny.K, model.hf.config.hidden_size)
    with pytest.raises(InvalidInputError, match="takes neither ages= nor passed="):
        model.update(memory, slots, ages=torch.zeros(tiny.LAYERS, tiny.K, dtype=torch.long))


def test_a_second_retriever_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="has a retriever or adapters already"):
        with_longterm().with_longterm(LongTermRules(retrieved=4))


def test_a_capacity_is_refused_where_recall_decides() -> None:
    rules = LongTermRules(retrieved=4, policy="recall_frequency")
    model = with_memory(tiny.decoder(), longterm=rules, retrieval_size=8)
    with pytest.raises(InvalidInputError, match="leave capacity= out"):
        model.new_memory(capacity=12)


def test_calls_inside_and_outside_inference_mode_mix() -> None:
    model = with_longterm()
    memory = model.new_memory()
    asked = {"max_new_tokens": 2, "do_sample": False}
    with torch.inference_mode():
        model.write(memory, ids(40))
        inside = model.generate(memory, ids(5), **asked)
    assert torch.equal(model.generate(memory, ids(5), **asked), inside)
    model.write(memory, ids(40, seed=1))
