"""Harm is measured against the stock model, on text that the memory is not asked with."""

from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch

from remanence import Memory, MemoryModel
from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.evaluation import harm
from remanence.evaluation.harness import Evaluation, Report, Run
from tests.support import asked
from tests.support.tiny import decoder, tokenizer, with_memory

TEXT = " ".join(paragraphs()[100:104])


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harm, "ASKED_WITH", 12)
    monkeypatch.setattr(harm, "ANSWER_TOKENS", 4)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Evaluation]:
    """Makes an evaluation of a text, by default with three passages told that are not in it."""

    def make(model: MemoryModel, columns: str = "nothing,slots", text: str = TEXT, **more: Any) -> Evaluation:
        (tmp_path / "text.txt").write_text(text)
        options = {"told": asked.squad_file(tmp_path), "unrelated": 3, "count": 2, "window": 40, **more}
        return asked.evaluation(harm, model, columns, data=tmp_path / "text.txt", **options)

    return make


def learned() -> MemoryModel:
    hf = decoder(vocab_size=300, num_hidden_layers=1, max_position_embeddings=200)
    return with_memory(hf, slots=24, k=6, tokenizer=tokenizer())


def rows(evaluation: Evaluation, column: str) -> list[dict[str, Any]]:
    return [row for row in Report.of(evaluation, Run(evaluation, {})(), {}).rows if row["column"] == column]


def test_nothing_is_the_stock_model_behind_the_first_tokens_of_a_window(made: Callable[..., Evaluation]) -> None:
    model = asked.model()
    [nothing, _] = rows(made(model), "nothing")
    ids = torch.tensor(model.tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    losses = []
    for place in (1, 1 + (len(ids) // 40 - 1) // 2):
        window = ids[40 * place : 40 * place + 40]
        labels = torch.where(torch.arange(40) < 12, -100, window)
        with torch.no_grad():
            losses.append(float(model.hf(input_ids=window[None], labels=labels[None]).loss))
    assert (nothing["group"], nothing["samples"]) == ("windows", 2)
    assert nothing["metrics"]["perplexity"]["value"] == pytest.approx(exp(sum(losses) / 2), rel=1e-4)
    assert nothing["metrics"]["read"]["value"] == 0.0


@pytest.mark.parametrize("min_score", [1.0, None])
def test_only_a_memory_that_is_read_changes_what_is_said(
    min_score: float | None, made: Callable[..., Evaluation]
) -> None:
    model, reads = asked.model(), min_score is None
    model.config = model.config.replace(retrieval=model.config.retrieval.replace(min_score=min_score))
    windows, prompts = rows(made(model, count=8), "slots")
    assert (windows["versus"]["perplexity"]["value"] != 1.0) is reads
    assert (prompts["metrics"]["same"]["value"] < 1.0) is reads
    assert windows["metrics"]["read"]["value"] == prompts["metrics"]["read"]["value"] == float(reads)


def test_a_learned_memory_is_full_of_text_that_does_not_stand_in_the_window(
    made: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, written = learned(), list[str]()
    write = model.write
    monkeypatch.setattr(model, "write", lambda memory, text: written.append(text) or write(memory, text))
    text = "\n".join(paragraphs()[230:]).replace(" ", "\n")  # however its lines are broken
    evaluation = made(model, "nothing,pool", text, told=None, unrelated=None)
    found = rows(evaluation, "pool")[0]
    prose = [one for one in written if one in paragraphs()]
    assert len(written) == 2 * 24 // 6 and prose and set(prose) <= set(paragraphs()[:230])
    assert found["metrics"]["read"]["value"] == 1.0 and found["versus"]["perplexity"]["value"] != 1.0


def test_related_is_the_window_in_front_of_the_one_that_is_read_written_last(
    made: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, events = learned(), list[tuple[Memory, list[int]]]()
    write, read = model.write, model.read

    def writing(memory: Memory, content: Any) -> Any:
        events.append((memory, [] if isinstance(content, str) else list(content)))
        return write(memory, content)

    def reading(memories: list[Memory], contexts: Any, **more: Any) -> Any:
        events.append((memories[0], contexts[0].tolist()))
        return read(memories, contexts, **more)

    monkeypatch.setattr(model, "write", writing)
    monkeypatch.setattr(model, "read", reading)
    made_of = made(model, "related")
    Run(made_of, {})()
    pairs = [(events[place - 1], one) for place, one in enumerate(events) if len(one[1]) == 12]
    ids = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    windows = [ids[start : start + 40] for start in range(0, len(ids), 40)]
    assert len(pairs) == 2
    for (into, before), (memory, start) in pairs:
        assert into is memory and memory.write_count == 3 + 1
        assert windows[windows.index(before) + 1][:12] == start
    asked_of = [item for item in made_of.items if item.columns is None or "related" in item.columns]
    assert {item.groups for item in asked_of} == {("windows",)}


def test_a_pool_that_the_checkpoint_ships_is_measured_and_is_no_empty_memory(made: Callable[..., Evaluation]) -> None:
    model = learned()
    with pytest.raises(InvalidInputError, match="ships no pool"):
        made(model, "shipped")
    torch.manual_seed(2)
    model.shipped_pool = torch.randn(1, 24, 32)
    assert rows(made(model, "nothing,shipped"), "shipped")[0]["versus"]["perplexity"]["value"] != 1.0
    other = rows(made(learned(), "nothing"), "nothing")[0]["metrics"]
    assert rows(made(model, "nothing"), "nothing")[0]["metrics"] == other


def test_prompts_are_fifty_and_differ() -> None:
    assert len(set(harm.prompts())) == 50 and all(prompt.strip() == prompt != "" for prompt in harm.prompts())


def test_the_bundled_text_leaves_paragraphs_to_be_told() -> None:
    assert len(set(paragraphs()) - set(harm.bundled_text().splitlines())) > 200


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"unrelated": 7}, "6 passages to tell, not 7"),
        ({"text": "Too short."}, "name a longer one"),
        ({"window": 1001}, "at most 1000 do"),
        ({"columns": "nothing,bm25_4"}, "no column 'bm25_4'"),
    ],
)
def test_evaluation_refuses_what_it_cannot_measure(
    more: dict[str, Any], message: str, made: Callable[..., Evaluation]
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        made(asked.model(), **more)


def test_windows_are_as_long_as_fit_where_nobody_says_otherwise(made: Callable[..., Evaluation]) -> None:
    for model, length in ((asked.model(), 512), (learned(), 200 - 1 - 24)):
        assert made(model, "nothing", text=" ".join(paragraphs()[:9]), window=None).settings["window"] == length
