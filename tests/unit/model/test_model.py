"""What a model takes, what it says of what it does not take, and that nothing is changed then."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from remanence import Memory, MemoryConfig, MemoryModel
from remanence.config import LongTermConfig, StorageConfig
from remanence.errors import CorruptMemoryError, InvalidInputError, MemoryMismatchError
from tests.support import tiny
from tests.support.models import everything, told, with_longterm
from tests.support.tiny import SLOTS, K, decoder, ids, tokenizer, with_memory, with_text

VOCABULARY = 300
TOLD = "Alice Brown was born in Oslo."


def write(model: MemoryModel, memory: Any, content: Any) -> None:
    model.write(memory, content)


def read(model: MemoryModel, memory: Any, content: Any) -> None:
    model.read(memory, content)


def generate(model: MemoryModel, memory: Any, content: Any) -> None:
    model.generate(memory, content, max_new_tokens=2)


Operation = Callable[[MemoryModel, Any, Any], None]
every_operation = pytest.mark.parametrize("operation", [write, read, generate])


@pytest.fixture(scope="module", params=[with_memory, with_text], ids=["learned", "text"])
def model(request: pytest.FixtureRequest) -> MemoryModel:
    """A model that takes text; no test here changes it."""
    made: MemoryModel = request.param(decoder(vocab_size=VOCABULARY), tokenizer=tokenizer())
    return made


BAD_CONTENT = [
    pytest.param("", "there is nothing to read: the text is empty", id="empty text"),
    pytest.param(" \n", "empty, or blank", id="blank text"),
    pytest.param("a\0b", "NUL characters", id="a binary file"),
    pytest.param("a\ud800", "which is no character", id="half a character"),
    pytest.param([], "no tokens", id="no ids"),
    pytest.param(torch.zeros(0, dtype=torch.long), "no tokens", id="no ids in a tensor"),
    pytest.param([3, VOCABULARY], f"0..{VOCABULARY - 1}.*another model's tokenizer", id="above the vocabulary"),
    pytest.param([3, -1], f"0..{VOCABULARY - 1}", id="below the vocabulary"),
    pytest.param([3.0, 4.0], "integer token ids", id="floats"),
    pytest.param(torch.ones(4), r"ids.long\(\)", id="float tensor"),
    pytest.param(torch.ones(4, dtype=torch.bool), "must be integers", id="bool tensor"),
    pytest.param(torch.ones(2, 3, dtype=torch.long), "one row of token ids", id="two rows for one memory"),
    pytest.param(torch.ones(1, 2, 3, dtype=torch.long), "one row of token ids", id="three dimensions"),
    pytest.param(torch.tensor(3), "one row of token ids", id="no dimension"),
    pytest.param(torch.ones(4, dtype=torch.long, device="meta"), "on meta, the model on cpu", id="other device"),
    pytest.param(None, "expected text", id="nothing"),
    pytest.param(7, "expected text", id="a number"),
    pytest.param(b"text", r"decode\('utf-8'\)", id="bytes"),
    pytest.param(
        ["one text", "another"], r"one text or one row.*model\.write\(\[first, second\]", id="texts in a list"
    ),
    pytest.param([[3, 4], [5, 6]], "one text or one row of ids, got a list of them", id="rows in a list"),
    pytest.param([{"role": "user", "content": "Hello."}], "no chat template", id="messages without a template"),
    pytest.param([{"role": "user", "content": 3}], "message 0 is not", id="a message without text"),
]


@every_operation
@pytest.mark.parametrize(("content", "says"), BAD_CONTENT)
def test_bad_content_is_named_and_changes_nothing(
    model: MemoryModel, operation: Operation, content: Any, says: str
) -> None:
    memory = told(model)
    before = everything(memory)
    with pytest.raises(InvalidInputError, match=says):
        operation(model, memory, content)
    assert everything(memory) == before


@pytest.mark.parametrize("make", [with_memory, with_text])
@every_operation
def test_text_needs_a_tokenizer(make: Callable[[], MemoryModel], operation: Operation) -> None:
    model = make()
    with pytest.raises(InvalidInputError, match="no tokenizer"):
        operation(model, told(model), "text")


@every_operation
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([[3, 4]], "2 memories take 2 texts or rows of ids, got 1"),
        (torch.ones(3, 4, dtype=torch.long), "got 3"),
        (torch.ones(4, dtype=torch.long), "got one"),
        (TOLD, "got one"),
        ([[3, 4], []], "no tokens"),
        ([[3, 4], [VOCABULARY]], "must lie in"),
    ],
)
def test_a_batch_takes_one_good_row_for_each_memory(
    model: MemoryModel, operation: Operation, content: Any, says: str
) -> None:
    memories = [told(model, seed) for seed in range(2)]
    before = [everything(memory) for memory in memories]
    with pytest.raises(InvalidInputError, match=says):
        operation(model, memories, content)
    assert [everything(memory) for memory in memories] == before


@every_operation
@pytest.mark.parametrize(
    "memory",
    ["a memory", None, 3, [], [[]], [None], [["a memory"]]],
    ids=["text", "nothing", "a number", "no memories", "no memories of a row", "nothing in a row", "text in a row"],
)
def test_what_is_no_memory_is_refused(model: MemoryModel, operation: Operation, memory: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"expected a Memory|no memory was given"):
        operation(model, memory, [[3, 4]])


@pytest.mark.parametrize("memory", ["a memory", None, [], [None]])
def test_ask_and_search_refuse_what_is_no_memory(model: MemoryModel, memory: Any) -> None:
    for act in (model.ask, model.search):
        with pytest.raises(InvalidInputError, match=r"expected a Memory|no memory was given"):
            act(memory, "Where was Alice born?")


@pytest.mark.parametrize("operation", [read, generate])
def test_a_row_does_not_read_one_memory_twice(operation: Operation) -> None:
    model = with_text()
    one, other = told(model, 0), told(model, 1)
    with pytest.raises(InvalidInputError, match="given twice"):
        operation(model, [[one, other, one]], [ids(5)])
    operation(model, [[one, other], one], [ids(5), ids(5)])


def test_read_and_generate_take_one_memory_in_two_rows(model: MemoryModel) -> None:
    memory, prompts = told(model), [ids(4), ids(7, seed=1)]
    together = model.read([memory, memory], prompts).logits
    for row, prompt in enumerate(prompts):
        alone = model.read(memory, prompt).logits[0]
        torch.testing.assert_close(together[row, -len(prompt) :], alone, atol=1e-4, rtol=0.0)
    both = model.generate([memory, memory], [TOLD, TOLD], max_new_tokens=4, do_sample=False)
    assert both == [model.generate(memory, TOLD, max_new_tokens=4, do_sample=False)] * 2


OTHERS: dict[str, tuple[Callable[[], MemoryModel], str]] = {
    "other weights": (lambda: with_memory(decoder(vocab_size=62)), "fingerprint"),
    "other pool": (lambda: with_memory(slots=2 * SLOTS), f"slots: the memory has {2 * SLOTS}, the model {SLOTS}"),
    "other dtype": (lambda: with_memory(decoder(dtype=torch.bfloat16)), "dtype: the memory has bfloat16, the model"),
    "other depth": (lambda: with_memory(decoder(num_hidden_layers=2)), "layers: the memory has 2, the model 3"),
    "other eviction": (lambda: with_memory(eviction="shared"), "shared_eviction: the memory has True"),
    "other writer": (with_text, "writer: the memory has text, the model learned"),
}


@every_operation
@pytest.mark.parametrize("other", sorted(OTHERS))
def test_another_models_memory_is_refused_and_says_what_differs(operation: Operation, other: str) -> None:
    make, says = OTHERS[other]
    memory = told(make())
    before = everything(memory)
    with pytest.raises(MemoryMismatchError, match=says):
        operation(with_memory(), memory, ids(5))
    assert everything(memory) == before


@every_operation
@pytest.mark.parametrize("make", [with_memory, with_text])
@pytest.mark.parametrize("how", ["changed", "replaced"])
def test_a_weight_that_changed_makes_another_model(
    operation: Operation, make: Callable[[], MemoryModel], how: str
) -> None:
    model = make()
    memory = told(model)
    weight: Any = model.backbone.layers[1].mlp.up_proj.weight
    if how == "changed":
        with torch.no_grad():
            weight += 0.1
    else:
        weight.data = weight.data + 0.1
    with pytest.raises(MemoryMismatchError, match="fingerprint"):
        operation(model, memory, ids(5))


@every_operation
def test_a_memory_on_another_device_is_refused(operation: Operation) -> None:
    model = with_memory()
    memory = told(model).to("meta")
    with pytest.raises(InvalidInputError, match=r"memory is on meta, the model on cpu; move it with"):
        operation(model, memory, ids(5))


@every_operation
@pytest.mark.parametrize("parts", [("keys", "values"), ("keys",), ("values",), ("keys", "values", "newest")])
def test_a_pool_full_of_nan_is_refused(operation: Operation, parts: tuple[str, ...]) -> None:
    model = with_memory()
    memory = told(model)
    for part in parts:
        held = memory.newest if part == "newest" else memory.pool.tensors[part]
        assert held is not None
        held.fill_(torch.nan)
    before = everything(memory)
    with pytest.raises(CorruptMemoryError, match="saved memory"):
        operation(model, memory, ids(20))
    assert everything(memory) == before


def test_reading_and_generating_change_no_memory(model: MemoryModel) -> None:
    memories = [told(model, seed, writes) for seed, writes in enumerate([2, 0, 1])]
    before = [everything(memory) for memory in memories]
    model.read(memories, [ids(3), ids(4), ids(5)])
    model.generate(memories, [ids(3), ids(4), ids(5)], do_sample=True, num_beams=2, max_new_tokens=5)
    model.ask(memories[0], "Where was Alice born?", max_new_tokens=2)
    assert [everything(memory) for memory in memories] == before


def unhooked(hf: Any) -> bool:
    return not any(layer._forward_pre_hooks for layer in hf.base_model.layers)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"slots": 10, "slots_per_write": 4}, "N=8 or N=12"),
        ({"slots": 4, "slots_per_write": 8}, "between 1 and"),
        ({"slots": 8, "slots_per_write": 0}, "between 1"),
        ({"slots": 8, "slots_per_write": 4, "eviction": "oldest"}, "per_layer"),
        ({"slots": 8, "slots_per_write": 4, "forget": True}, "no setting forget"),
        ({"slots_per_write": 4}, "needs slots"),
        ({"slots": 100}, "does not hold one chunk"),
        ({"min_score": 2.0}, "min_score lies between 0 and 1"),
        ({"longterm": LongTermConfig(retrieved=4)}, "belongs to a learned memory"),
        ({"retrieval_size": 8}, "give longterm= too"),
        ({"config": "learned"}, "config is a MemoryConfig, not str"),
        ({"config": MemoryConfig(), "forget": True}, "no setting forget"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_attach_refuses_settings_that_do_not_fit_before_anything_is_hooked(settings: dict[str, Any], says: str) -> None:
    hf = decoder()
    with pytest.raises(InvalidInputError, match=says):
        MemoryModel.attach(hf, **settings)
    assert unhooked(hf)


@pytest.mark.parametrize("name", ["slots", "slots_per_write", "retrieval_size"])
@pytest.mark.parametrize("wrong", ["6", 6.0, True])
def test_attach_names_a_size_that_is_no_integer_before_anything_is_hooked(name: str, wrong: Any) -> None:
    hf = decoder()
    sizes = {"slots": SLOTS, "slots_per_write": K, "longterm": LongTermConfig(retrieved=4), name: wrong}
    with pytest.raises(InvalidInputError, match=f"^{name}:? must be an integer, got {wrong!r}"):
        MemoryModel.attach(hf, **sizes)
    assert unhooked(hf)


def test_attach_takes_a_config_with_settings_changed() -> None:
    config = MemoryConfig(writer="learned", slots=SLOTS, slots_per_write=K)
    model = MemoryModel.attach(decoder(), config=config, slots=2 * SLOTS, eviction="shared")
    assert model.config == config.replace(slots=2 * SLOTS, eviction="shared")
    assert (model.slots, model.slots_per_write) == (2 * SLOTS, K)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"seed": "3"}, "seed must be an integer, got '3'"),
        ({"seed": True}, "seed must be an integer"),
        ({"capacity": 600.0}, "capacity must be an integer"),
        ({"capacity": K - 1}, "smaller than one write"),
        ({"storage": "disk"}, r"such as StorageConfig\('disk'\), got 'disk'"),
        ({"storage": StorageConfig("text")}, "cannot be made again"),
        ({"date": "2024-01-01"}, "a learned memory has no such option.*date"),
    ],
)
def test_new_memory_of_a_learned_writer_names_what_it_cannot_be_made_with(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        with_longterm().new_memory(**settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"seed": 3.0}, "seed must be an integer, got 3.0"),
        ({"storage": "disk"}, r"such as StorageConfig\('disk'\), got 'disk'"),
        ({"capacity": 600}, "a text memory has no such option.*capacity"),
    ],
)
def test_new_memory_of_a_text_writer_names_what_it_cannot_be_made_with(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        with_text().new_memory(**settings)


def test_write_warns_once_where_the_learned_writer_was_never_trained() -> None:
    model = MemoryModel.attach(decoder(), slots=SLOTS, slots_per_write=K)
    memory = model.new_memory()
    assert not model.trained and with_memory().trained and with_text().trained
    with pytest.warns(UserWarning, match="never trained.*attach text slots"):
        model.write(memory, ids(9))
    model.write(memory, ids(9))  # which would warn again if it did so every time


@pytest.mark.filterwarnings("error")
def test_write_does_not_warn_where_there_is_nothing_to_train(model: MemoryModel) -> None:
    model.write(model.new_memory(), TOLD)


def test_ask_answers_as_a_greedy_generation_does_and_names_its_sources() -> None:
    model = with_text(decoder(vocab_size=VOCABULARY), tokenizer=tokenizer())
    memory = model.new_memory()
    for text in (TOLD, "The harbour of Bergen is old."):
        model.write(memory, text)
    answer = model.ask(memory, "Where was Alice Brown born?", max_new_tokens=6)
    prompt = "Question: Where was Alice Brown born? Answer:"
    right = model.generate(memory, prompt, max_new_tokens=6, do_sample=False)
    assert answer.text == str(answer) == right.partition("\n")[0].strip()
    assert answer.found and {write for write, _ in answer.sources} == {0, 1}
    assert answer.sources == model.search(memory, "Where was Alice Brown born?")
    assert answer.sources[0][0] == 0 and answer.sources[0][1] > answer.sources[1][1]
    assert model.search(memory, "Where was Alice Brown born?", k=1) == answer.sources[:1]


def test_ask_finds_nothing_where_nothing_scores() -> None:
    model = with_text(decoder(vocab_size=VOCABULARY), tokenizer=tokenizer(), min_score=1.0)
    memory, question = model.new_memory(), "Where was Alice Brown born?"
    model.write(memory, TOLD)
    answer, blank = (model.ask(one, question, max_new_tokens=6) for one in (memory, model.new_memory()))
    assert answer == blank and not answer.found and not answer.sources
    assert [write for write, _ in model.search(memory, question)] == [0]


def test_search_of_a_learned_memory_counts_the_slots_that_are_retrieved_of_each_write() -> None:
    model = with_longterm(decoder(vocab_size=VOCABULARY), tokenizer=tokenizer())
    memory = told(model, writes=9)
    found = model.search(memory, "Alice", k=9)
    assert sum(share for _, share in found) == pytest.approx(1.0)
    assert [share for _, share in found] == sorted((share for _, share in found), reverse=True)
    assert {write for write, _ in found} <= set(range(9)) and len(found) > 1
    retrieved = [rows[0].serial for rows in model.read(memory, "Alice").past_key_values.retrieval.found]
    writes = memory.written_by(torch.cat(retrieved)).tolist()
    assert dict(found) == {write: pytest.approx(writes.count(write) / len(writes)) for write in set(writes)}


def test_search_needs_a_retriever_where_the_memory_is_a_pool() -> None:
    model = with_memory(decoder(vocab_size=VOCABULARY), tokenizer=tokenizer())
    with pytest.raises(InvalidInputError, match="no retriever"):
        model.search(told(model), "Alice")


def test_forget_leaves_a_text_memory_as_if_it_was_never_told() -> None:
    model = with_text()
    memory, without = model.new_memory(), model.new_memory()
    for number in range(3):
        model.write(memory, ids(20, seed=number), id=number)
        if number != 1:
            model.write(without, ids(20, seed=number), id=number)
    receipt = model.forget(memory, 1)
    assert (receipt.id, receipt.tokens, receipt.chunks, receipt.exact) == (1, 20, 1, True)
    assert [record.id for record in memory.writes] == [0, 2]
    assert torch.equal(model.read(memory, ids(5)).logits, model.read(without, ids(5)).logits)
    before = everything(memory)
    with pytest.raises(InvalidInputError, match="no write 1"):
        model.forget(memory, 1)
    assert everything(memory) == before


def test_forget_refuses_a_learned_memory_and_says_what_to_do() -> None:
    model = with_memory()
    memory = told(model)
    with pytest.raises(InvalidInputError, match="make the memory again from its other writes"):
        model.forget(memory, 1)


def test_inspect_counts_what_a_memory_holds(model: MemoryModel) -> None:
    memory = told(model, writes=3)
    about = model.inspect(memory)
    assert about["writer"] == model.config.writer and about["writes"] == 3
    assert about["bytes"] == memory.nbytes and sum(about["bytes"].values()) > 0
    assert about["readable"] is True and about["model"] == model.fingerprint()
    assert with_memory(slots=2 * SLOTS).inspect(memory)["readable"] is False


def test_inspect_counts_long_term_slots_layer_by_layer() -> None:
    model = with_longterm()
    assert model.inspect(told(model, writes=3))["longterm"] == [2 * K] * tiny.LAYERS


def test_text_goes_in_and_comes_out_for_one_memory_and_for_several(model: MemoryModel) -> None:
    greedy = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    memories = [Memory.fork(told(model)) for _ in range(2)]
    one = model.generate(memories[0], TOLD, **greedy)
    given = model.tokenizer(TOLD)["input_ids"]
    continued = model.generate(memories[0], given, **greedy)[0, len(given) :]
    assert one == model.tokenizer.decode(continued, skip_special_tokens=True)
    assert model.generate(memories, [TOLD, TOLD], **greedy) == [one, one]
    several = model.generate(memories[0], TOLD, **greedy, num_beams=2, num_return_sequences=2)
    assert len(several) == 2 and all(isinstance(text, str) for text in several)
