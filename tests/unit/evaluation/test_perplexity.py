"""Perplexity is that of the text, window by window, and a ratio compares the same tokens."""

import json
from math import exp, sqrt
from typing import Any

import pytest
import torch

from remanence import Memory, MemoryModel
from remanence.config import LongTermConfig
from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.evaluation.perplexity import bundled_text, measure
from tests.support.tiny import decoder, tokenizer, with_memory

TEXT = " ".join(paragraphs()[:2])
SIZES: dict[str, Any] = {"samples": 5, "window": 20, "memories": 2}
N, K = 24, 6


def model_of(**settings: Any) -> MemoryModel:
    hf = decoder(vocab_size=300, num_hidden_layers=1, max_position_embeddings=64)
    return with_memory(hf, slots=N, k=K, tokenizer=tokenizer(), **settings)


def ids_of(model: MemoryModel, text: str) -> list[int]:
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


class Notes:
    """Notes what is written into which memory, and what is read from it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: MemoryModel) -> None:
        self.written: list[tuple[list[Memory], list[Any]]] = []
        self.reads: list[tuple[list[Memory], torch.Tensor]] = []
        write, read = model.write, model.read

        def noting_write(memories: list[Memory], texts: Any) -> Any:
            self.written.append((memories, list(texts)))
            return write(memories, texts)

        def noting_read(memories: list[Memory], ids: torch.Tensor) -> Any:
            self.reads.append((memories, ids))
            return read(memories, ids)

        monkeypatch.setattr(model, "write", noting_write)
        monkeypatch.setattr(model, "read", noting_read)


def test_empty_is_the_decoder_alone() -> None:
    model = model_of()
    ids = ids_of(model, TEXT)
    windows = len(ids) // 20
    report = measure(model, TEXT, **{**SIZES, "samples": windows})
    losses = []
    for start in range(20, 20 * windows, 20):
        window = torch.tensor([ids[start : start + 20]])
        with torch.no_grad():
            losses.append(float(model.hf(input_ids=window, labels=window).loss))
    assert report["samples"] == windows - 1
    assert report["tokens"] == (windows - 1) * 19
    assert report["conditions"]["empty"]["perplexity"] == pytest.approx(exp(sum(losses) / len(losses)), rel=1e-4)
    assert report["conditions"]["empty"]["ratio"] == 1.0
    assert report["conditions"]["empty"]["ratio_stderr"] == 0.0


def test_all_memories_read_the_same_windows_and_the_unrelated_ones_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    notes = Notes(monkeypatch, model)
    measure(model, TEXT, **SIZES)
    assert [len(memories) for memories, _ in notes.reads] == [2] * 6 + [1] * 3
    for batch in range(0, 9, 3):
        (empty, first), (unrelated, second), (related, third) = notes.reads[batch : batch + 3]
        assert first.equal(second) and first.equal(third)
        assert not any(memory.written for memory in empty)
        assert [memory.write_count for memory in unrelated] == [2 * N // K] * len(unrelated)
        assert [memory.write_count for memory in related] == [2 * N // K + 1] * len(related)


def test_what_is_unrelated_does_not_stand_in_the_text_however_its_lines_are_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of()
    notes = Notes(monkeypatch, model)
    text = "\n".join(paragraphs()[230:]).replace(" ", "\n")
    measure(model, text, **SIZES, seed=1)
    written = [text for _, texts in notes.written for text in texts if isinstance(text, str)]
    prose = [text for text in written if text in paragraphs()]
    assert len(written) == 2 * 2 * N // K
    assert prose and set(prose) <= set(paragraphs()[:230])
    assert len(set(written)) > len(written) // 2


def test_related_is_the_window_in_front_of_the_one_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    notes = Notes(monkeypatch, model)
    measure(model, TEXT, **SIZES)
    ids = ids_of(model, TEXT)
    tokens = [(memories, texts) for memories, texts in notes.written if not isinstance(texts[0], str)]
    related = notes.reads[2::3]
    assert len(tokens) == len(related) == 3
    for (written, before), (read, windows) in zip(tokens, related, strict=True):
        assert written == read
        for front, window in zip(before, windows, strict=True):
            both = front.tolist() + window.tolist()
            assert both in [ids[start : start + 40] for start in range(0, len(ids), 20)]


def test_a_pool_that_the_checkpoint_ships_is_no_empty_memory() -> None:
    model = model_of()
    torch.manual_seed(2)
    model.shipped_pool = torch.randn(1, N, 32)
    report = measure(model, TEXT, **SIZES)
    assert list(report["conditions"]) == ["empty", "shipped", "unrelated", "related"]
    assert report["conditions"]["shipped"]["ratio"] != 1.0
    assert report["conditions"]["empty"] == measure(model_of(), TEXT, **SIZES)["conditions"]["empty"]


def test_standard_error_of_a_ratio_is_that_of_paired_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    from remanence.evaluation import perplexity

    model = model_of()
    given = iter([[1.0, 3.0], [1.1, 3.3], [1.0, 3.0]])
    monkeypatch.setattr(perplexity, "_losses", lambda *_: torch.tensor(next(given), dtype=torch.double))
    figures = measure(model, TEXT, samples=2, window=20)["conditions"]["unrelated"]
    assert figures["perplexity"] == pytest.approx(exp(2.2))
    assert figures["stderr"] == pytest.approx(exp(2.2) * 2.2 / sqrt(2) / sqrt(2))
    assert figures["ratio"] == pytest.approx(exp(0.2))
    assert figures["ratio_stderr"] == pytest.approx(exp(0.2) * 0.2 / sqrt(2) / sqrt(2))


def test_report_has_the_promised_shape_with_long_term_memory_too() -> None:
    model = model_of(longterm=LongTermConfig(retrieved=8), retrieval_size=8)
    seen: list[tuple[int, int]] = []
    report = measure(model, TEXT, **SIZES, seed=3, progress=lambda done, total: seen.append((done, total)))
    assert list(report) == [
        *("n", "k", "model", "longterm", "window", "memories", "samples", "seed", "tokens", "conditions")
    ]
    assert report["longterm"]["retrieved"] == 8
    assert (report["n"], report["k"], report["window"], report["samples"], report["seed"]) == (N, K, 20, 5, 3)
    assert list(report["conditions"]) == ["empty", "unrelated", "related"]
    assert seen[-1] == (11, 11) and len(seen) == 11
    assert json.loads(json.dumps(report)) == report
    assert measure(model, TEXT, **SIZES, seed=3) == report
    other = measure(model, TEXT, **SIZES, seed=4)["conditions"]
    assert other["empty"] == report["conditions"]["empty"]
    assert other["unrelated"] != report["conditions"]["unrelated"]


@pytest.mark.parametrize(
    ("text", "wrong", "said"),
    [
        ("Oslo.", {}, "three windows of 20 need 60"),
        (TEXT, {"samples": 1}, "at least two"),
        (TEXT, {"window": 1}, "at least two"),
        (TEXT, {"memories": 0}, "one memory"),
        (TEXT, {"window": 40}, "at most 39"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(text: str, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        measure(model_of(), text, **{**SIZES, **wrong})


def test_the_bundled_text_leaves_paragraphs_to_be_written() -> None:
    assert len(set(paragraphs()) - set(bundled_text().splitlines())) > 200
