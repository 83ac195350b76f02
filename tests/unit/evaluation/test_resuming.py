"""An evaluation that was cut goes on to the same figures, and does not measure again what it has kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remanence import MemoryModel
from remanence.config import LongTermConfig
from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.evaluation import perplexity, retention, retrieval
from tests.support.tiny import decoder, tokenizer, with_memory

Measure = Callable[..., dict[str, Any]]
TEXT = "\n".join(paragraphs()[:6])
EVALUATIONS: dict[str, Measure] = {
    "retention": lambda model, **more: retention.measure(model, distances=(0, 2), samples=5, batch=2, **more),
    "retrieval": lambda model, **more: retrieval.measure(model, distances=(4,), samples=5, batch=2, **more),
    "perplexity": lambda model, **more: perplexity.measure(
        model, TEXT, samples=5, window=20, memories=2, **{"seed": 0, **more}
    ),
}


def model_of() -> MemoryModel:
    hf = decoder(vocab_size=300, num_hidden_layers=1, max_position_embeddings=1000)
    return with_memory(hf, tokenizer=tokenizer(), longterm=LongTermConfig(retrieved=4), retrieval_size=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_cut_run_goes_on_to_the_same_figures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, model = EVALUATIONS[name], model_of()
    seen: list[int] = []
    whole = measure(model, progress=lambda done, total: seen.append(done))
    total = len(seen)
    assert seen == list(range(1, total + 1))

    def cut(done: int, total: int) -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, state=tmp_path, progress=cut)
    reads = 0
    read = model.generate if name == "retention" else model.read

    def counting(*args: Any, **more: Any) -> Any:
        nonlocal reads
        reads += 1
        return read(*args, **more)

    monkeypatch.setattr(model, "generate" if name == "retention" else "read", counting)
    assert measure(model, state=tmp_path) == whole
    again, reads = reads, 0
    assert measure(model, state=tmp_path) == whole and reads == 0
    measure(model)
    assert 0 < again < reads


@pytest.mark.parametrize("name", EVALUATIONS)
def test_what_another_run_has_kept_is_refused(name: str, tmp_path: Path) -> None:
    measure, model = EVALUATIONS[name], model_of()
    measure(model, state=tmp_path)
    with pytest.raises(InvalidInputError, match=r"another seed.*; name another folder"):
        measure(model, state=tmp_path, seed=1)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_what_was_measured_under_other_rules_is_refused(name: str, tmp_path: Path) -> None:
    measure, model = EVALUATIONS[name], model_of()
    measure(model, state=tmp_path)
    model.config = model.config.replace(longterm=LongTermConfig(retrieved=4, cross_layer_prior=0.02, key_size=8))
    with pytest.raises(InvalidInputError, match="another longterm; name another folder"):
        measure(model, state=tmp_path)
