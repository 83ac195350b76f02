"""Edits are made as the column says, all of a group before any is asked about, and leave nothing behind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from remanence import MemoryModel
from remanence.errors import InvalidInputError
from remanence.evaluation import edits
from remanence.evaluation.harness import Evaluation, Record, Report, Run
from remanence.evaluation.scoring import Scored
from tests.support import asked


def evaluation(model: MemoryModel, file: Path, columns: str, **more: Any) -> Evaluation:
    return edits.evaluation(model, file, edits.methods_of(model, columns), **{"counts": [2], "asked": 2, **more})


def shown(monkeypatch: pytest.MonkeyPatch, model: MemoryModel, file: Path, columns: str) -> dict[str, list[str]]:
    """By column, what stands before the answers about the first of two edits, and how often memory was written."""
    found: dict[str, list[str]] = {}

    column = ""

    def note(_: Any, memory: Any, pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[list[Scored], bool]:
        for pair in pairs:
            context, answer = map(model.tokenizer.decode, pair)
            found.setdefault(column, []).append(f"{len(memory.writes)}: {context}|{answer}")
        return [Scored([-1.0], [True]) for _ in pairs], False

    monkeypatch.setattr(edits, "score_tokens", note)
    made = evaluation(model, file, columns)
    for column, measure in made.columns.items():  # noqa: B007
        measure(made.items[:1])
    return found


def test_columns_show_statements_as_their_names_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = asked.counterfact_file(tmp_path)
    found = shown(monkeypatch, asked.model(), file, "nothing,fits,bm25_1,slots")
    new, old = asked.TOWNS[-1], asked.TOWNS[0]
    prompts = ["Ada was born in", "The home town of Ada is", "The sister of Ada was born in"]
    asks = [f"{prompts[0]}| {new}", f"{prompts[1]}| {new}", f"{prompts[2]}| {old}"]
    asks += [f"{prompts[0]}| {old}", f"{prompts[1]}| {old}", f"{prompts[2]}| {new}"]
    both = f"Ada was born in {new}.\nBert was born in {old}.\n"
    assert found["nothing"] == [f"0: {one}" for one in asks]
    assert found["slots"] == [f"2: {one}" for one in asks]
    assert found["fits"] == [f"0: {both}{one}" for one in asks]
    assert found["bm25_1"] == [f"0: Ada was born in {new}.\n{one}" for one in asks]


def test_counterfact_counts_the_more_probable_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = asked.model()
    likely = model.tokenizer(f" {asked.TOWNS[-1]}", add_special_tokens=False)["input_ids"]

    def score(_: Any, memory: Any, pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[list[Scored], bool]:
        return [Scored([-1.0 if answer == likely else -2.0], [False]) for _, answer in pairs], False

    monkeypatch.setattr(edits, "score_tokens", score)
    first, _ = Run(evaluation(model, asked.counterfact_file(tmp_path), "nothing"), {})()
    assert (first["efficacy"], first["paraphrase"], first["specificity"]) == (1.0, 1.0, 0.0)
    assert first["score"] == [1.0, 1.0, 0.0]


def test_zsre_counts_the_share_of_tokens_that_are_most_probable(tmp_path: Path) -> None:
    model = asked.model()
    first = Run(evaluation(model, asked.zsre_file(tmp_path), "nothing"), {})()[0]
    prompt = model.tokenizer("Where was Ada born?", add_special_tokens=False)["input_ids"]
    answer = model.tokenizer(f" {asked.TOWNS[-1]}", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        best = model.hf(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()
    share = sum(a == b for a, b in zip(best, answer, strict=True)) / len(answer)
    assert first["efficacy"] == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize("method", ["ft", "ft_l"])
def test_fine_tuning_makes_all_edits_of_a_group_and_is_undone(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = asked.model()
    weights = {name: parameter.clone() for name, parameter in model.hf.named_parameters()}
    file, made = asked.zsre_file(tmp_path), []

    def records(columns: str) -> list[Record]:
        return Run(evaluation(model, file, columns, rate=3e-2, bound=1.0), {})()

    tune, before = edits.tune, records("nothing")

    def noting(_: Any, memory: Any, weights: Any, row: list[int], *args: Any, **more: Any) -> float:
        made.append(model.tokenizer.decode(row))
        return tune(_, memory, weights, row, *args, **more)

    monkeypatch.setattr(edits, "tune", noting)
    tuned = records(method)
    assert made == [f"Where was Ada born? {asked.TOWNS[-1]}", f"Where was Bert born? {asked.TOWNS[0]}"]
    assert tuned[1]["efficacy"] == 1.0 and before[1]["efficacy"] < 1.0
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.hf.named_parameters())
    assert [record["score"] for record in records("nothing")] == [record["score"] for record in before]


def test_groups_are_as_large_as_the_count(tmp_path: Path) -> None:
    model = asked.model()
    made = evaluation(model, asked.counterfact_file(tmp_path), "slots", counts=[1, 2, 6], asked=5)
    groups = [(item.groups[0], item.together, len(item.content[0].edits)) for item in made.items]
    assert [one for one in groups if one[0] == "1 edit"] == [("1 edit", f"1/{n}", 1) for n in range(5)]
    assert [one for one in groups if one[0] == "2 edits"] == [("2 edits", f"2/{n}", 2) for n in (0, 0, 2, 2)]
    assert [one for one in groups if one[0] == "6 edits"] == [("6 edits", "6/0", 6)] * 6


def test_evaluation_refuses_what_it_cannot_measure(tmp_path: Path) -> None:
    model, file = asked.model(), asked.counterfact_file(tmp_path)
    with pytest.raises(InvalidInputError, match="has 6 edits, and 7"):
        evaluation(model, file, "slots", counts=[7])
    with pytest.raises(InvalidInputError, match="numbers from 1"):
        evaluation(model, file, "slots", counts=[0])
    with pytest.raises(InvalidInputError, match="no column oracle"):
        evaluation(model, file, "oracle")
    with pytest.raises(InvalidInputError, match="there is no column"):
        evaluation(model, file, "rome")


def test_edits_without_neighbours_or_paraphrases_are_scored_by_the_rest(tmp_path: Path) -> None:
    rewrite = {
        "prompt": "{} was born in",
        "subject": "Ada",
        "target_new": {"str": "Rome"},
        "target_true": {"str": "Oslo"},
    }
    bare: dict[str, Any] = {"requested_rewrite": rewrite, "paraphrase_prompts": [], "neighborhood_prompts": []}
    half = {**bare, "paraphrase_prompts": ["Ada is from"]}
    for records, metrics in (
        ([bare, bare], {"efficacy", "score"}),
        ([bare, half], {"efficacy", "paraphrase", "score"}),
    ):
        (tmp_path / "edits.json").write_text(json.dumps(records))
        made = evaluation(asked.model(), tmp_path / "edits.json", "nothing,slots")
        figures = Report.of(made, Run(made, {})(), {}).rows[0]["metrics"]
        assert set(figures) == metrics
        parts = [figures[name]["value"] for name in metrics - {"score"}]
        expected = len(parts) / sum(1 / part for part in parts) if all(parts) else 0.0
        assert figures["score"]["value"] == pytest.approx(expected)
