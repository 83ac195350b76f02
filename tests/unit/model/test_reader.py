"""A reading adapter of text slots: it acts behind memory that is read, for the rows that read, and nowhere else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from remanence import Memory, MemoryModel
from remanence.config import LoraSettings, RetrievalConfig
from remanence.errors import InvalidInputError
from remanence.model import read
from remanence.model.formats.adapters import file_of
from remanence.model.read import Refusal
from tests.support import tiny
from tests.support.models import randomised, realigned
from tests.support.tiny import decoder, ids
from tests.unit.model.test_chat import TEMPLATE

LORA = LoraSettings(r=2, lora_alpha=4.0, target_modules=("q_proj", "v_proj", "o_proj", "down_proj"))
HEAD = torch.tensor([1])
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 6}
REFUSAL = "Oslo"


def reader(hf: PreTrainedModel | None = None, tokenizer: Any = None, **settings: Any) -> MemoryModel:
    """Random as one that was trained."""
    made = MemoryModel.attach(
        decoder() if hf is None else hf, tokenizer, **{"min_score": None, "lora": LORA, **settings}
    )
    return randomised(made)


def chatting(**retrieval: Any) -> tuple[MemoryModel, Memory]:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    settings = RetrievalConfig(**{"min_score": None, "refusal": REFUSAL, **retrieval})
    model = reader(decoder(vocab_size=300), tokenizer, retrieval=settings)
    memory = model.new_memory()
    model.write(memory, "Alice was born in Oslo.", source="notes")
    return model, memory


def told(model: MemoryModel, *texts: Tensor) -> Memory:
    memory = model.new_memory()
    for text in texts:
        model.write(memory, text)
    return memory


@torch.no_grad()
def plain(model: MemoryModel, chunk: Tensor, rest: Tensor) -> Tensor:  # [t, V]
    """Head and chunk by the stock model, the rest behind them with the adapter."""
    cache = DynamicCache(config=model.hf.config)
    with model.stock():
        model.hf(input_ids=torch.cat([HEAD, chunk])[None], past_key_values=cache)
    with model.role("read"):
        logits: Tensor = model.hf(input_ids=rest[None], past_key_values=cache).logits[0]
    return logits


def test_read_with_an_adapter_is_the_adapter_behind_stock_head_and_chunk() -> None:
    model = reader()
    chunk, rest = ids(20), ids(9, seed=1)
    logits = model.read(told(model, chunk), torch.cat([HEAD, rest])).logits[0]
    expected = plain(model, chunk, rest)
    torch.testing.assert_close(logits[1:], expected, atol=1e-5, rtol=0)
    with model.stock():
        stock = model.hf(input_ids=torch.cat([HEAD, chunk, rest])[None]).logits[0, 21:]
    assert (expected - stock).abs().max() > 0.1


def test_write_and_calls_that_read_nothing_are_the_stock_model() -> None:
    model, bare = reader(), MemoryModel.attach(decoder(), min_score=None)
    for each in (model, bare):
        memory = told(each, ids(20))
        assert memory.chunks is not None
    slots = [each.writer.slots(memory, list(memory.chunks)) for each in (model, bare)]  # type: ignore[union-attr]
    assert torch.equal(slots[0][0], slots[1][0])
    assert model.fingerprint() == bare.fingerprint()
    prompt = ids(9, seed=1)
    assert torch.equal(model.read(model.new_memory(), prompt).logits, bare.hf(input_ids=prompt[None]).logits)


@pytest.mark.parametrize("beams", [1, 2])
def test_rows_that_read_and_rows_that_do_not_go_together(beams: int) -> None:
    model = reader()
    memories = [told(model, ids(20)), model.new_memory(), told(model, ids(5, seed=3), ids(7, seed=4))]
    prompts = [torch.cat([HEAD, ids(n, seed=n)]) for n in (4, 9, 6)]
    together = model.read(memories, prompts).logits
    for row, (memory, prompt) in enumerate(zip(memories, prompts, strict=True)):
        alone = model.read(memory, prompt).logits[0]
        torch.testing.assert_close(together[row, -len(prompt) :], alone, atol=1e-5, rtol=0)
    options = {**GREEDY, "num_beams": beams}
    made = model.generate(memories, prompts, **options)
    for row, (memory, prompt) in enumerate(zip(memories, prompts, strict=True)):
        assert torch.equal(made[row, -6:], model.generate(memory, prompt, **options)[0, -6:])


def test_rows_of_a_learned_model_that_read_nothing_go_without_the_adapter() -> None:
    model = randomised(tiny.with_memory(lora=LoraSettings(r=2, lora_alpha=4.0)))
    memories = [told(model, ids(20)), model.new_memory()]
    together = model.read(memories, torch.stack([ids(6), ids(6, seed=1)])).logits
    alone = model.read(memories[1], ids(6, seed=1)).logits[0]
    torch.testing.assert_close(together[1], alone, atol=1e-5, rtol=0)


def test_detach_takes_the_adapter_off() -> None:
    hf, prompt = decoder(), ids(9)[None]
    before = hf(input_ids=prompt).logits
    wanted = {name: parameter.requires_grad for name, parameter in hf.named_parameters()}
    assert reader(hf).detach() is hf
    assert torch.equal(hf(input_ids=prompt).logits, before)
    assert {name: parameter.requires_grad for name, parameter in hf.named_parameters()} == wanted


def test_save_of_adapters_alone_names_the_base_and_leaves_it_out(tmp_path: Path) -> None:
    hf = decoder()
    hf.save_pretrained(tmp_path / "base")
    model = reader(hf)
    model.save_pretrained(tmp_path / "made", base="some base")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [file_of("reader"), "remanence.json"]
    loaded = MemoryModel.from_pretrained(tmp_path / "made", base=tmp_path / "base")
    memory, prompt = told(model, ids(20)), torch.cat([HEAD, ids(9)])
    assert loaded.config == model.config and loaded.spec == model.spec
    torch.testing.assert_close(loaded.read(memory, prompt).logits, model.read(memory, prompt).logits, atol=1e-2, rtol=0)
    without = realigned(MemoryModel.from_pretrained(tmp_path / "made", base=tmp_path / "base", parts=[]))
    bare = MemoryModel.attach(decoder(), min_score=None)
    assert torch.equal(without.read(memory, prompt).logits, bare.read(memory, prompt).logits)


def test_load_of_adapters_says_what_is_missing_or_other(tmp_path: Path) -> None:
    hf = decoder()
    model = reader(hf)
    model.save_pretrained(tmp_path / "made", base="some base")
    with pytest.raises(FileNotFoundError, match="with the base"):
        MemoryModel.from_pretrained(tmp_path / "made", base=tmp_path / "nowhere")
    model.detach()
    with torch.no_grad():
        hf.get_input_embeddings().weight.add_(0.1)
    hf.save_pretrained(tmp_path / "other")
    with pytest.warns(UserWarning, match="not those that the adapters were trained on"):
        MemoryModel.from_pretrained(tmp_path / "made", base=tmp_path / "other")
    for parts, error in ((["nothing"], InvalidInputError), (["reader"], FileNotFoundError)):
        (tmp_path / "made" / file_of("reader")).unlink(missing_ok=error is FileNotFoundError)
        with pytest.raises(error, match=parts[0]):
            MemoryModel.from_pretrained(tmp_path / "made", base=tmp_path / "other", parts=parts)
    model.hf.save_pretrained(tmp_path / "whole")
    MemoryModel.attach(decoder()).save_pretrained(tmp_path / "own")
    with pytest.raises(InvalidInputError, match="holds its decoder"):
        MemoryModel.from_pretrained(tmp_path / "own", base=tmp_path / "whole")


def test_ask_is_the_stock_model_where_the_reader_refuses() -> None:
    model, memory = chatting(found_bias=-25.0)
    kept, question = model.new_memory(), "Where was Alice born?"
    answer = model.ask(memory, question, max_new_tokens=6)
    assert not answer.found and answer.sources == []
    assert answer.text == model.ask(kept, question, max_new_tokens=6).text
    messages = [{"role": "user", "content": question}]
    logits = [model.read(one, messages).logits for one in (memory, kept)]
    assert torch.equal(*logits)


def test_ask_reads_on_where_the_reader_does_not_refuse() -> None:
    model, memory = chatting(found_bias=25.0)
    plain_model, same = chatting(refusal=None)
    question = "Where was Alice born?"
    answer = model.ask(memory, question, max_new_tokens=6)
    assert answer.found and [write for write, _ in answer.sources] == [memory.writes[0].id]
    assert answer.text == plain_model.ask(same, question, max_new_tokens=6).text


class Streamed(BaseStreamer):
    """Notes what comes, the prompt first."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def put(self, value: Tensor) -> None:
        self.sizes.append(value.numel())

    def end(self) -> None:
        self.sizes.append(-1)


def passes(model: MemoryModel, act: Callable[[], object]) -> int:
    """Forward passes over more than a token that it takes."""
    seen: list[int] = []
    hook = model.hf.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    act()
    hook.remove()
    return sum(size > 1 for size in seen)


@pytest.mark.parametrize(("bias", "expected"), [(25.0, 1), (-25.0, 2)])
def test_only_a_prompt_that_is_refused_is_passed_over_twice(bias: float, expected: int) -> None:
    model, memory = chatting(found_bias=bias)
    messages, streamed = [{"role": "user", "content": "Where was Alice born?"}], Streamed()
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    assert passes(model, lambda: model.generate(memory, messages, **settings, streamer=streamed)) == expected
    assert streamed.sizes[0] > 1 and streamed.sizes[1:] == [1, 1, 1, -1]
    assert passes(model, lambda: model.read(memory, messages)) == expected


@pytest.mark.parametrize("bias", [25.0, -25.0])
@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {"prompt_lookup_num_tokens": 3}]
)
def test_every_way_to_generate_refuses_alike(bias: float, options: dict[str, int]) -> None:
    model, memory = chatting(found_bias=bias)
    plain, same = chatting(refusal=None)
    same = same if bias > 0 else plain.new_memory()
    messages = [{"role": "user", "content": "Where was Alice born?"}]
    settings = {"max_new_tokens": 5, "do_sample": False, **options}
    assert model.generate(memory, messages, **settings) == plain.generate(same, messages, **settings)
    picked = torch.tensor([2])
    kept = model.read(memory, messages, logits_to_keep=picked).logits
    torch.testing.assert_close(kept, plain.read(same, messages, logits_to_keep=picked).logits)


def test_an_answer_that_is_the_refusal_was_not_found() -> None:
    model, memory = chatting(found_bias=25.0)
    question = "Where was Alice born?"
    text = model.ask(memory, question, max_new_tokens=6).text
    model.config = model.config.replace(retrieval=model.config.retrieval.replace(refusal=text))
    answer = model.ask(memory, question, max_new_tokens=6)
    assert answer.text == text and not answer.found and answer.sources == []


def test_rows_that_are_refused_leave_the_others_as_they_are() -> None:
    model, memory = chatting()
    other = model.new_memory()
    model.write(other, "Bob works as a baker in Bergen, and Alice in Oslo.")
    messages = [[{"role": "user", "content": text}] for text in ("Where was Alice born?", "Who is a baker?")]
    first = int(model.tokenizer(REFUSAL, add_special_tokens=False)["input_ids"][0])
    likely = []
    for one, message in zip((memory, other), messages, strict=True):
        open_model, copy = chatting(refusal=None)
        copy = open_model.new_memory()
        open_model.write(copy, str(one.writes[0].text))
        likely.append(float(open_model.read(copy, message).logits[0, -1].softmax(-1)[first]))
    low, high = sorted(likely)
    assert low < high
    bias = float(torch.tensor((low + high) / 2).logit())
    model.config = model.config.replace(retrieval=model.config.retrieval.replace(found_bias=bias))
    together = model.read([memory, other], messages).logits[:, -1]
    for row, (one, message) in enumerate(zip((memory, other), messages, strict=True)):
        torch.testing.assert_close(together[row], model.read(one, message).logits[0, -1], atol=1e-5, rtol=0)
        refused = not model.ask(one, str(message[0]["content"]), max_new_tokens=2).found
        assert refused == (likely[row] == high)


def test_a_high_score_outweighs_that_the_reader_may_refuse_but_not_that_it_will() -> None:
    config = RetrievalConfig(refusal=REFUSAL, score_weight=0.5, refusal_weight=1.0)
    assert config.found(0.99, 0.5) and not config.found(0.3, 0.5) and config.found(0.3, 0.1)
    assert not config.found(0.99, 0.6)
    assert not config.found(0.0, 1.0) and config.found(1.0, 0.0)
    with pytest.raises(InvalidInputError, match="found_bias must be finite"):
        RetrievalConfig(found_bias=float("nan"))


def test_text_that_is_no_conversation_is_not_refused() -> None:
    model, memory = chatting(found_bias=-25.0)
    logits = model.read(memory, "Where was Alice born?").logits
    assert not torch.equal(logits, model.read(model.new_memory(), "Where was Alice born?").logits)


def test_from_pretrained_takes_a_base_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder(vocab_size=300).to(torch.bfloat16).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    monkeypatch.setenv("REMANENCE_CACHE", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="remanence setup smollm2"):
        MemoryModel.from_pretrained("smollm2")
    monkeypatch.setattr("remanence.model.formats.native.find_base", lambda name: tmp_path)
    monkeypatch.setattr("remanence.model.formats.native.names", list)  # no adapters are bundled for it
    model = MemoryModel.from_pretrained("smollm2", dtype=torch.float32)
    memory = model.new_memory()
    model.write(memory, "Alice was born in Oslo.")
    assert model.config.writer == "text" and model.adapters is None and model.backbone.dtype == torch.float32
    assert model.ask(memory, "Where was Alice born?", max_new_tokens=2).text is not None


def test_nothing_is_read_where_the_reader_would_begin_to_refuse() -> None:
    config = RetrievalConfig(refusal=REFUSAL, score_weight=5.0, refusal_weight=0.0)
    refusal = Refusal(2, [0.99, 0.99, None], config, lambda refused: refused)  # type: ignore[arg-type, return-value]
    likely = torch.tensor([0.3, 0.3, 0.4])  # but no more than a half
    logits = torch.stack([likely, likely.roll(1), likely]).log()
    assert refusal.instead(logits) == [True, False, False]
    assert refusal.instead(logits[[1, 1, 0]]) is None


def test_a_call_inside_another_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, memory = chatting(found_bias=-99.0)
    asked = [{"role": "user", "content": "Where was Alice born?"}]
    alone = model.generate(memory, asked, **GREEDY)
    generate = read._generate

    others: list[Tensor] = []

    def beside(*given: Any) -> Any:  # as a call of another thread is, between the beginning of this one and its pass
        others.append(model.read(model.new_memory(), ids(5)).logits)
        return generate(*given)

    monkeypatch.setattr(read, "_generate", beside)
    assert model.generate(memory, asked, **GREEDY) == alone
    assert len(others) == 2 and torch.equal(*others)  # it was read, refused, and began again
