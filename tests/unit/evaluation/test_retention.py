"""Retention is scored as it is defined: by stubs that remember, forget or guess in ways that are known."""

import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from remanence import MemoryModel
from remanence.data.biographies import ATTRIBUTES
from remanence.errors import InvalidInputError
from remanence.evaluation.plots import retention_plot
from remanence.evaluation.retention import chance, measure, survival
from tests.support.tiny import decoder, tokenizer, with_memory

N, K = 24, 6
CORPUS = json.loads(resources.files("remanence.data").joinpath("biographies.json").read_text(encoding="utf-8"))


def model_of(context: int = 256) -> MemoryModel:
    hf = decoder(vocab_size=300, num_hidden_layers=1, max_position_embeddings=context)
    return with_memory(hf, slots=N, k=K, tokenizer=tokenizer())


def recall(prompt: str, known: list[str]) -> str:
    """Answer a question by looking it up in texts, as a perfect reader would."""
    for attribute in ATTRIBUTES:
        for wording in CORPUS["attributes"][attribute]["questions"]:
            pattern = re.escape(f"Question: {wording} Answer:").replace(re.escape("{name}"), "(.+)")
            if asked := re.fullmatch(pattern, prompt.strip()):
                values = set(CORPUS["attributes"][attribute]["values"])
                words = {word for text in known if asked[1] in text for word in re.findall(r"\w+", text)}
                return " " + next(iter(words & values), "unknown") + ".\nQuestion: and so on"
    raise AssertionError(f"no wording of a question: {prompt}")


class Remembering:
    """Stands in for a model's `write` and `generate`: knows the last `kept` texts of each memory, and its prompt."""

    def __init__(self, model: MemoryModel, kept: int = 10**6) -> None:
        self.model, self.kept = model, kept
        self.texts: dict[int, list[str]] = {}
        self.prompts: list[str] = []

    def write(self, memories: list[Any], texts: list[str]) -> None:
        for memory, text in zip(memories, texts, strict=True):
            self.texts.setdefault(id(memory), []).append(text)

    def generate(self, memories: list[Any], prompts: list[Any], **_: Any) -> Any:
        tokens = self.model.tokenizer
        as_text = isinstance(prompts[0], str)
        texts = prompts if as_text else [tokens.decode(ids) for ids in prompts]
        self.prompts += texts
        answers = []
        for memory, text in zip(memories, texts, strict=True):
            context, question, rest = text.rpartition("Question:")
            known = self.texts.get(id(memory), [])[-self.kept :] + context.split("</s>")
            answers.append(recall(question + rest, known))
        if as_text:
            return answers
        width = max(map(len, prompts))
        rows = [[0] * width + tokens(answer)["input_ids"] for answer in answers]
        longest = max(map(len, rows))
        return torch.tensor([row + [tokens.pad_token_id] * (longest - len(row)) for row in rows])


@pytest.fixture
def remembering(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Remembering]:
    def install(model: MemoryModel, **settings: Any) -> Remembering:
        stub = Remembering(model, **settings)
        monkeypatch.setattr(model, "write", stub.write)
        monkeypatch.setattr(model, "generate", stub.generate)
        return stub

    return install


def rates(report: dict[str, Any], condition: str) -> list[float]:
    return [point["exact_match"] for point in report["curves"][condition]]


def test_who_remembers_everything_has_a_pool_curve_of_one_and_who_has_nothing_of_zero(
    remembering: Callable[..., Remembering],
) -> None:
    model = model_of()
    remembering(model)
    report = measure(model, distances=[0, 1, 9], samples=7, batch=3, conditions=("pool", "none"))
    assert rates(report, "pool") == [1.0, 1.0, 1.0]
    assert rates(report, "none") == [0.0, 0.0, 0.0]


def test_distance_counts_the_writes_after_the_fact(remembering: Callable[..., Remembering]) -> None:
    model = model_of()
    remembering(model, kept=3)
    report = measure(model, distances="0..5", samples=4, conditions=("pool",))
    assert rates(report, "pool") == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_memory_is_brought_to_steady_state_before_the_fact(remembering: Callable[..., Remembering]) -> None:
    model = model_of()
    stub = remembering(model)
    measure(model, distances=[0, 3], samples=2, conditions=("pool",))
    name = re.compile(r"[A-Z]\w+ [A-Z]\w+")
    for texts in stub.texts.values():
        assert len(texts) == 2 * N // K + 1 + 3
        prompts = [
            prompt for prompt in stub.prompts if (asked := name.search(prompt)) and asked[0] in texts[2 * N // K]
        ]
        assert len(prompts) == 2


def test_context_holds_the_fact_until_later_text_pushes_it_out(remembering: Callable[..., Remembering]) -> None:
    model = model_of(context=2048)
    stub = remembering(model)
    report = measure(model, distances=[0, 2, 16], samples=3, batch=2, conditions=("context",))
    assert rates(report, "context") == [1.0, 1.0, 0.0]
    assert stub.texts == {}
    lengths = [len(model.tokenizer(prompt)["input_ids"]) for prompt in stub.prompts]
    assert max(lengths) == 2048 - 8


def test_context_starts_with_the_fact(remembering: Callable[..., Remembering]) -> None:
    stub = remembering(model_of(context=2048))
    measure(stub.model, distances=[0, 1], samples=1, conditions=("context",))
    assert [prompt.count("</s>") for prompt in stub.prompts] == [1, 2]


def test_conditions_are_asked_the_same_questions(remembering: Callable[..., Remembering]) -> None:
    model = model_of(context=2048)
    stub = remembering(model)
    measure(model, distances=[0, 1], samples=2, batch=2)
    asked = ["Question:" + prompt.rpartition("Question:")[2].rstrip() for prompt in stub.prompts]
    pool, none, context = asked[0:2], asked[2:4], asked[4:6]
    assert pool == none == context


def test_an_answer_is_scored_by_its_exact_case(
    remembering: Callable[..., Remembering], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()
    stub = remembering(model)
    plain = stub.generate
    monkeypatch.setattr(model, "generate", lambda *args, **kwargs: [text.swapcase() for text in plain(*args, **kwargs)])
    assert rates(measure(model, distances=[0], samples=3, conditions=("pool",)), "pool") == [0.0]


def test_report_has_the_promised_shape() -> None:
    model = model_of()
    seen: list[tuple[int, int]] = []
    report = measure(
        model, distances="0,1", samples=3, batch=2, seed=4, progress=lambda done, total: seen.append((done, total))
    )
    assert list(report) == [
        "n",
        "k",
        "model",
        "longterm",
        "curves",
        "survival",
        "chance",
        "seed",
        "samples",
        "attributes_per_biography",
    ]
    assert (report["n"], report["k"], report["seed"], report["samples"]) == (N, K, 4, 3)
    assert list(report["curves"]) == ["pool", "none", "context"]
    for points in report["curves"].values():
        assert [list(point) for point in points] == [["distance", "exact_match", "stderr", "samples"]] * 2
        assert [point["distance"] for point in points] == [0, 1]
    assert seen[-1][0] == seen[-1][1] == len(seen)
    assert json.loads(json.dumps(report)) == report


def test_same_seed_gives_the_same_writes_and_questions(remembering: Callable[..., Remembering]) -> None:
    model = model_of()
    runs = []
    for seed, batch in ((1, 4), (1, 3), (2, 4)):
        stub = remembering(model)
        measure(model, distances=[2], samples=4, batch=batch, seed=seed, conditions=("pool",))
        runs.append((list(stub.texts.values()), stub.prompts))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_standard_error_is_that_of_a_share(
    remembering: Callable[..., Remembering], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()
    stub = remembering(model)
    plain = stub.generate
    monkeypatch.setattr(model, "generate", lambda *args, **kwargs: ["no", *plain(*args, **kwargs)[1:]])
    report = measure(model, distances=[0], samples=4, conditions=("pool",))
    stderr = (0.75 * 0.25 / 4) ** 0.5
    assert report["curves"]["pool"] == [{"distance": 0, "exact_match": 0.75, "stderr": stderr, "samples": 4}]


def test_survival_line_starts_at_the_measured_accuracy_and_loses_its_share_at_every_write() -> None:
    points = [{"distance": 0, "exact_match": 0.9}, {"distance": 2, "exact_match": 0.1}]
    assert survival(points, slots=20, k=5) == [{"distance": 0, "line": 0.9}, {"distance": 2, "line": 0.9 * 0.75**2}]
    assert survival(points[1:], slots=20, k=5) == []


def test_chance_is_that_of_guessing_one_value() -> None:
    assert 0.005 < chance() <= 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        {"distances": []},
        {"distances": [-1]},
        {"samples": 0},
        {"conditions": ()},
        {"conditions": ("memory",)},
        {"attributes_per_biography": 9},
    ],
)
def test_sizes_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        measure(model_of(), **{"distances": [0], "samples": 1, **wrong})


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot_shows_all_curves_the_survival_line_and_chance(suffix: str, tmp_path: Path) -> None:
    def curve(rate: float) -> list[dict[str, float]]:
        return [{"distance": t, "exact_match": rate, "stderr": 0.02, "samples": 9} for t in (0, 4, 8)]

    report = {
        "n": N,
        "k": K,
        "samples": 9,
        "chance": 0.01,
        "curves": {c: curve(0.5) for c in ("pool", "none", "context")},
    }
    report["survival"] = survival(curve(0.5), N, K)
    path = tmp_path / f"retention{suffix}"
    retention_plot(report, path)
    content = path.read_bytes()
    if suffix == ".png":
        assert content.startswith(b"\x89PNG")
    else:
        text = content.decode()
        for label in ("through memory", "text in context", "neither", "survival", "chance", "exact match", "distance"):
            assert f"<!-- {label}" in text or label in text
