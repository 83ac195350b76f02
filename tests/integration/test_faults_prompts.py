"""A prompt is read as it was given: mask, positions, what its tokenizer puts in front, and no more than fits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers.cache_utils import DynamicCache

from remanence.errors import InvalidInputError
from remanence.evaluation.answering import Context
from tests.support.cli import done, refused
from tests.support.reading import CLOSE, or_refused, require_generate_to_read, steps, written
from tests.support.tiny import SIZES, SLOTS, decoder, ids, tokenizer, with_memory

POSITIONS = 64
TEXT = "Alice Brown was born"


def test_read_honours_or_refuses_a_mask() -> None:
    model = with_memory()
    memories, rows = [written(model, seed) for seed in range(2)], [ids(3), ids(8, seed=1)]
    padded = torch.stack([torch.cat([torch.full((5,), 2), rows[0]]), rows[1]])
    mask = torch.tensor([[0] * 5 + [1] * 3, [1] * 8])
    alone = [model.read(memory, row).logits[0, -1] for memory, row in zip(memories, rows, strict=True)]
    with or_refused("attention_mask"):
        together = model.read(memories, padded, attention_mask=mask).logits[:, -1]
        torch.testing.assert_close(together, torch.stack(alone), **CLOSE)


@pytest.mark.parametrize("act", ["read", "generate"])
def test_positions_are_honoured_or_refused(act: str) -> None:
    model = with_memory()
    memory, prompt, places = written(model), ids(3), torch.tensor([[100, 110, 120]])
    with or_refused("position_ids"):
        if act == "read":
            moved = model.read(memory, prompt, position_ids=places).logits[0, -1]
        else:
            moved = steps(model, memory, prompt, max_new_tokens=1, position_ids=places)[1][0]
        assert not torch.allclose(moved, model.read(memory, prompt).logits[0, -1], **CLOSE)


OWN: dict[str, Any] = {
    "use_cache": False,
    "past_key_values": DynamicCache(),
    "input_ids": torch.tensor([[5]]),
    "inputs_embeds": torch.zeros(1, 1, SIZES["hidden_size"]),
}


@pytest.mark.parametrize("name", OWN)
def test_read_refuses_what_it_sets_itself(name: str) -> None:
    model = with_memory()
    with pytest.raises(InvalidInputError, match=name):
        model.read(written(model), ids(3), **{name: OWN[name]})


@pytest.mark.parametrize("name", ["past_key_values", "inputs_embeds", "input_ids"])
def test_generate_refuses_what_it_sets_itself(name: str) -> None:
    model = with_memory()
    with pytest.raises(InvalidInputError, match=name):
        model.generate(written(model), ids(3), **{name: OWN[name]})


def with_bos() -> Any:
    """A tokenizer that puts <s> in front of every text, as those of Llama, Mistral and Gemma do."""
    made = tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert made(TEXT)["input_ids"][0] == 1
    return made


@torch.no_grad()
def stock_logits(text: str) -> Tensor:  # [T, V]
    logits: Tensor = decoder(vocab_size=300)(torch.tensor([with_bos()(text)["input_ids"]])).logits
    return logits[0]


def test_read_of_an_unwritten_memory_is_the_stock_call_on_what_the_tokenizer_makes() -> None:
    model = with_memory(decoder(vocab_size=300), tokenizer=with_bos())
    torch.testing.assert_close(model.read(model.new_memory(), TEXT).logits[0], stock_logits(TEXT), **CLOSE)


def test_read_of_several_texts_has_what_the_tokenizer_puts_in_front_of_each() -> None:
    model = with_memory(decoder(vocab_size=300), tokenizer=with_bos())
    texts = [TEXT, "Oslo"]
    read = model.read([model.new_memory(), model.new_memory()], texts).logits[:, -1]
    torch.testing.assert_close(read, torch.stack([stock_logits(text)[-1] for text in texts]), **CLOSE)


def test_generate_from_an_unwritten_memory_gives_the_stock_answer() -> None:
    model = with_memory(decoder(vocab_size=300), tokenizer=with_bos())
    given = torch.tensor([with_bos()(TEXT)["input_ids"]])
    stock = decoder(vocab_size=300).generate(given, max_new_tokens=8, do_sample=False)[0, given.shape[1] :]
    answer = model.generate(model.new_memory(), TEXT, max_new_tokens=8, do_sample=False)
    assert answer == with_bos().decode(stock, skip_special_tokens=True)


def test_a_context_begins_with_what_the_tokenizer_puts_in_front_and_has_it_once() -> None:
    context = Context(with_memory(decoder(vocab_size=300), tokenizer=with_bos()))
    context.append("Alice Brown works as a baker.")
    row = context.before(TEXT)
    assert row[0] == 1 and row.count(1) == 1


@pytest.mark.parametrize("act", ["read", "generate"])
@pytest.mark.parametrize("kind", ["written", "never written"])
def test_a_prompt_that_fits_alone_is_read(kind: str, act: str) -> None:
    model = with_memory(decoder(max_position_embeddings=POSITIONS))
    memory = written(model) if kind == "written" else model.new_memory()
    prompt = ids(POSITIONS - 1)
    assert SLOTS + len(prompt) > POSITIONS
    if act == "read":
        assert model.read(memory, prompt).logits.isfinite().all()
    else:
        require_generate_to_read(model, memory, prompt, max_new_tokens=1)


@pytest.mark.parametrize("act", ["read", "generate"])
@pytest.mark.parametrize("kind", ["written", "never written", "two rows"])
def test_a_prompt_longer_than_the_positions_is_refused(kind: str, act: str) -> None:
    model = with_memory(decoder(max_position_embeddings=POSITIONS))
    memory, prompt = model.new_memory(), ids(70)
    if kind != "never written":
        model.write(memory, ids(40))
    both = ([memory, written(model, 1)], [prompt, ids(5)]) if kind == "two rows" else (memory, prompt)
    options = {"max_new_tokens": 1} if act == "generate" else {}
    with pytest.raises(InvalidInputError, match=r"\b70\b.*\b64\b|\b64\b.*\b70\b"):
        getattr(model, act)(*both, **options)


def test_write_makes_no_chunk_longer_than_the_positions() -> None:
    model = with_memory(decoder(max_position_embeddings=POSITIONS))
    memory = model.new_memory()
    with or_refused(str(POSITIONS)):
        assert model.write(memory, ids(200)).chunks * (POSITIONS - 1) >= 200


def test_ask_refuses_a_question_longer_than_the_positions(tmp_path: Path) -> None:
    memory, model = str(tmp_path / "m"), ("--model", "tiny")
    done("write", memory, "-", *model, stdin="Alice Brown was born in Oslo. She works as a surveyor and lives in Rome.")
    line = refused("ask", memory, "the quick brown fox runs over the lazy dog " * 300 + TEXT, *model)
    assert "2048" in line.replace(",", "")
