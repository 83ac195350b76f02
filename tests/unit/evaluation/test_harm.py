"""Harm is measured against the stock model, on text that the memory is not asked with."""

from math import exp

import pytest
import torch

from remanence import MemoryModel
from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.evaluation import harm
from remanence.evaluation.columns import columns_of
from remanence.evaluation.harness import Evaluation, Report, Run
from tests.support import asked

TEXT = " ".join(paragraphs()[100:104])


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harm, "ASKED_WITH", 12)
    monkeypatch.setattr(harm, "ANSWER_TOKENS", 4)


def evaluation(model: MemoryModel, told: list[str] | None = None, count: int = 2, window: int = 40) -> Evaluation:
    told = [asked.passage(number) for number in range(3)] if told is None else told
    columns = columns_of(model, "nothing,slots")
    return harm.evaluation(model, TEXT, columns, told=told, unrelated=3, count=count, window=window)


def test_nothing_is_the_stock_model_behind_the_first_tokens_of_a_window() -> None:
    model = asked.model()
    made = evaluation(model)
    nothing = Report.of(made, Run(made, {})(), {}).rows[0]
    ids = torch.tensor(model.tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    losses = []
    for place in (0, len(ids) // 40 // 2):
        window = ids[40 * place : 40 * place + 40]
        labels = torch.where(torch.arange(40) < 12, -100, window)
        with torch.no_grad():
            losses.append(float(model.hf(input_ids=window[None], labels=labels[None]).loss))
    assert (nothing["group"], nothing["column"], nothing["samples"]) == ("windows", "nothing", 2)
    assert nothing["metrics"]["perplexity"]["value"] == pytest.approx(exp(sum(losses) / 2), rel=1e-4)
    assert nothing["metrics"]["read"]["value"] == 0.0


def test_a_memory_that_has_nothing_to_say_changes_nothing() -> None:
    model = asked.model()
    model.config = model.config.replace(retrieval=model.config.retrieval.replace(min_score=1.0))
    made = evaluation(model)
    windows, prompts = (row for row in Report.of(made, Run(made, {})(), {}).rows if row["column"] == "slots")
    assert windows["versus"]["perplexity"]["value"] == 1.0 and windows["metrics"]["read"]["value"] == 0.0
    assert prompts["metrics"]["same"]["value"] == 1.0 and prompts["metrics"]["read"]["value"] == 0.0


def test_a_memory_that_is_read_changes_what_is_said_and_it_shows() -> None:
    model = asked.model()
    model.config = model.config.replace(retrieval=model.config.retrieval.replace(min_score=None))
    made = evaluation(model, count=8)
    windows, prompts = (row for row in Report.of(made, Run(made, {})(), {}).rows if row["column"] == "slots")
    assert windows["versus"]["perplexity"]["value"] != 1.0 and windows["metrics"]["read"]["value"] == 1.0
    assert prompts["metrics"]["same"]["value"] < 1.0 and prompts["metrics"]["read"]["value"] == 1.0


def test_prompts_are_fifty_and_differ() -> None:
    assert len(set(harm.prompts())) == 50 and all(prompt.strip() == prompt != "" for prompt in harm.prompts())


def test_evaluation_refuses_what_it_cannot_measure() -> None:
    model = asked.model()
    with pytest.raises(InvalidInputError, match="2 passages to tell, not 3"):
        evaluation(model, told=["a", "b"])
    with pytest.raises(InvalidInputError, match="more than 12 tokens"):
        evaluation(model, window=12)
    with pytest.raises(InvalidInputError, match="name a longer one"):
        harm.evaluation(model, "Too short.", columns_of(model, "slots"), unrelated=3, window=40)
    with pytest.raises(InvalidInputError, match="there is no column bm25_4"):
        harm.evaluation(model, TEXT, columns_of(model, "nothing,bm25_4"), unrelated=3, window=40)
