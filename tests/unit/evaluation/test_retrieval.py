"""Retrieval is scored by who wrote what was retrieved."""

from typing import Any

import pytest
import torch

from remanence import MemoryModel
from remanence.config import LongTermConfig
from remanence.errors import InvalidInputError
from remanence.evaluation import retrieval
from remanence.evaluation.harness import Evaluation, Report, Run
from remanence.memory.longterm import LongTermLayer
from tests.support import asked
from tests.support.tiny import LAYERS, decoder, tokenizer, with_memory

N, K, K0 = 24, 6, 12


@pytest.fixture
def model() -> MemoryModel:
    hf = decoder(vocab_size=300, max_position_embeddings=1024)
    return with_memory(hf, slots=N, k=K, tokenizer=tokenizer(), longterm=LongTermConfig(retrieved=K0), retrieval_size=8)


def choose(monkeypatch: pytest.MonkeyPatch, pick: Any) -> None:
    """Let every layer score those slots best that `pick` says, of the serial numbers that are there."""

    def scores(self: LongTermLayer, queries: torch.Tensor) -> torch.Tensor:
        return pick(self.serials()).float()

    monkeypatch.setattr(LongTermLayer, "scores", scores)


def fact_serials(serial: torch.Tensor) -> torch.Tensor:
    """The fact is write 2·N/K of each memory, whose first write made N slots."""
    first = N + (2 * N // K - 1) * K
    return (serial >= first) & (serial < first + K)


def evaluation(model: MemoryModel, columns: str = "longterm", **more: Any) -> Evaluation:
    return asked.evaluation(retrieval, model, columns, **{"distances": "40", "count": 2, **more})


def figures(made: Evaluation) -> dict[str, float]:
    [row] = Report.of(made, Run(made, {})(), {}).rows
    return {name: figure["value"] for name, figure in row["metrics"].items()}


@pytest.mark.parametrize(
    ("pick", "distance", "share"),
    [
        (fact_serials, 40, 1.0),
        (lambda serial: ~fact_serials(serial), 40, 0.0),
        (lambda serial: fact_serials(serial) & (serial % 2 == 0), 40, 0.5),
    ],
    ids=["the fact", "something else", "a part"],
)
def test_share_is_that_of_the_facts_slots_which_are_retrieved(
    pick: Any, distance: int, share: float, model: MemoryModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, pick)
    found = figures(evaluation(model, distances=str(distance), count=3, batch=2))
    assert found.pop("chance") > 0
    assert found == {"share": share, **{f"layer_{layer}": share for layer in range(LAYERS)}}


def test_chance_is_the_share_of_slots_that_are_retrieved(model: MemoryModel) -> None:
    made = evaluation(model, distances="2p,1p", count=3, batch=2)
    rows = Report.of(made, Run(made, {})(), {}).rows
    assert [(row["group"], row["samples"]) for row in rows] == [("4 writes later", 3), ("8 writes later", 3)]
    assert rows[1]["metrics"]["chance"]["value"] == K0 / ((4 * N // K) * K)  # all writes but the first evicted K
    assert "layer" not in Report.of(made, Run(made, {})(), {}).table()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"distances": "0"}, "at least one write"),
        ({"distances": ""}, "lack a number"),
        ({"columns": "pool"}, "the only column is longterm"),
        ({"columns": "pool,longterm"}, "the only column is longterm"),
    ],
)
def test_what_makes_no_sense_is_refused(model: MemoryModel, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        evaluation(model, **wrong)


def test_a_model_without_a_retriever_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no retriever"):
        evaluation(with_memory(decoder(vocab_size=300), tokenizer=tokenizer()))
