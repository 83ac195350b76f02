"""Retrieval is scored by who wrote what was retrieved."""

import json
from typing import Any

import pytest
import torch

from remanence import MemoryModel
from remanence.config import LongTermConfig
from remanence.errors import InvalidInputError
from remanence.evaluation.retrieval import measure
from remanence.memory.longterm import LongTermLayer
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


def test_who_retrieves_the_fact_has_a_share_of_one(model: MemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, fact_serials)
    report = measure(model, distances=[40], samples=3, batch=2)
    assert report["points"][0]["layers"] == [1.0] * LAYERS
    assert (report["points"][0]["share"], report["points"][0]["samples"]) == (1.0, 3)
    assert (report["n"], report["k"], report["k0"]) == (N, K, K0)
    assert json.loads(json.dumps(report)) == report


def test_who_retrieves_something_else_has_none(model: MemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, lambda serial: ~fact_serials(serial))
    assert measure(model, distances=[40], samples=2)["points"][0]["share"] == 0.0


def test_a_part_retrieved_is_a_part_of_what_is_there(model: MemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, lambda serial: fact_serials(serial) & (serial % 2 == 0))
    assert measure(model, distances=[200], samples=2)["points"][0]["share"] == 0.5


def test_chance_is_the_share_of_slots_that_are_retrieved(model: MemoryModel) -> None:
    steps: list[tuple[int, int]] = []
    report = measure(model, distances="2p", samples=3, batch=2, progress=lambda *step: steps.append(step))
    point = report["points"][0]
    assert point["distance"] == 2 * N // K
    assert point["longterm"] == (4 * N // K) * K  # all writes but the first evicted K
    assert point["random"] == K0 / point["longterm"]
    assert steps[-1][0] == steps[-1][1] == len(steps)


@pytest.mark.parametrize("wrong", [{"distances": [0]}, {"distances": []}, {"samples": 0}, {"batch": 0}])
def test_sizes_that_make_no_sense_are_refused(model: MemoryModel, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        measure(model, **{"distances": [4], "samples": 1, **wrong})


def test_a_model_without_a_retriever_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no retriever"):
        measure(with_memory(decoder(vocab_size=300), tokenizer=tokenizer()))
