"""Edits are made as the column says, all of a group before any is asked about, and leave nothing behind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from remanence import MemoryModel
from remanence.config import LongTermConfig
from remanence.data.edits import biography_edits
from remanence.errors import InvalidInputError
from remanence.evaluation import editing
from remanence.evaluation.columns import column_of
from remanence.evaluation.finetuning import TUNED
from remanence.evaluation.harness import Evaluation, Record, Report, Run
from remanence.evaluation.scoring import Scored
from tests.support import asked
from tests.support.tiny import decoder, tokenizer, with_memory


def evaluation(model: MemoryModel, columns: str, **more: Any) -> Evaluation:
    return asked.evaluation(editing, model, columns, **{"edits": "2", "count": 2, **more})


def learned(positions: int = 1000) -> MemoryModel:
    hf = decoder(vocab_size=300, num_hidden_layers=1, max_position_embeddings=positions)
    return with_memory(hf, tokenizer=tokenizer(), longterm=LongTermConfig(retrieved=4), retrieval_size=8)


def test_columns_show_statements_as_their_names_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`found`: by column, how often memory was written, what stands before the answers, and the answers."""
    model, found = asked.model(), dict[str, list[str]]()

    def note(_: Any, memory: Any, pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[list[Scored], bool]:
        for pair in pairs:
            context, answer = map(model.tokenizer.decode, pair)
            found.setdefault(column.name, []).append(f"{len(memory.writes)}: {context}|{answer}")
        return [Scored([-1.0], [True]) for _ in pairs], False

    monkeypatch.setattr(editing, "score_tokens", note)
    made = evaluation(model, "nothing,fits,bm25_1,slots", data=asked.counterfact_file(tmp_path))
    for column in made.columns:
        made.measure(column, made.items[:1])
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

    monkeypatch.setattr(editing, "score_tokens", score)
    first, _ = Run(evaluation(model, "nothing", data=asked.counterfact_file(tmp_path)), {})()
    assert (first["efficacy"], first["paraphrase"], first["specificity"]) == (1.0, 1.0, 0.0)
    assert first["score"] == [1.0, 1.0, 0.0]


def test_zsre_counts_the_share_of_tokens_that_are_most_probable(tmp_path: Path) -> None:
    model = asked.model()
    first = Run(evaluation(model, "nothing", data=asked.zsre_file(tmp_path)), {})()[0]
    prompt = model.tokenizer("Where was Ada born?", add_special_tokens=False)["input_ids"]
    answer = model.tokenizer(f" {asked.TOWNS[-1]}", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        best = model.hf(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()
    share = sum(a == b for a, b in zip(best, answer, strict=True)) / len(answer)
    assert first["efficacy"] == pytest.approx(share, abs=1e-4)


def test_the_answer_is_no_part_of_what_a_memory_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = asked.model(), list[str]()
    queries = model.writer.queries  # type: ignore[union-attr]
    monkeypatch.setattr(
        model.writer, "queries", lambda prompt, head: seen.append(prompt.query_text) or queries(prompt, head)
    )
    made = evaluation(model, "slots", data=asked.zsre_file(tmp_path))
    made.measure(made.columns[0], made.items[:1])
    assert seen == ["Where was Ada born?", "What is the home town of Ada?", "The trade of Ada is"]


@pytest.mark.parametrize("column", ["nothing", "fits", "bm25_4", "pool", "longterm", *TUNED])
def test_every_edit_of_a_group_is_asked_about_after_the_last_and_prompts_are_read_at_once(
    column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About people, whose facts are known before: to a memory, which weights are tuned behind, or as text."""
    model, edits = learned(6000), biography_edits(3)
    events, batches = list[str](), list[int]()
    write, tune = model.write, editing.tune

    def writing(memory: Any, text: str) -> Any:
        events.append(text)
        return write(memory, text)

    def tuning(_: Any, memory: Any, weights: Any, row: list[int], *args: Any, **more: Any) -> float:
        events.append(model.tokenizer.decode(row))
        return tune(_, memory, weights, row, *args, **more)

    right = {edit.prompt: edit.new for edit in edits[:2]} | {edits[2].neighbours[0][0]: edits[2].neighbours[0][1]}

    def answer(_: Any, memories: list[Any], rows: list[list[int]]) -> list[str]:
        prompts = [model.tokenizer.decode(row) for row in rows]
        events.extend([] if column == "nothing" else ["asked"])
        batches.append(len(rows))
        for prompt in prompts if column == "fits" else ():
            assert all(text in prompt for edit in edits for text in (*edit.known, edit.statement))
        return [next((right[p] for p in right if prompt.endswith(p)), "nothing") for prompt in prompts]

    monkeypatch.setattr(model, "write", writing)
    monkeypatch.setattr(editing, "tune", tuning)
    monkeypatch.setattr(editing, "answer", answer)
    monkeypatch.setattr(editing, "_BATCH", 5)
    records = Run(evaluation(model, column, edits="3", count=1), {})()
    assert [(one["efficacy"], one["paraphrase"], one["specificity"]) for one in records] == [
        *[(1.0, 0.0, 0.0)] * 2,
        (0.0, 0.0, 1.0),
    ]
    known = [text for edit in edits for text in edit.known]
    made = list[str]() if column in ("fits", "bm25_4") else known
    if column in ("pool", "longterm"):
        made = [*known, *(edit.statement for edit in edits)]
    if column in TUNED:
        made = [*known, *(f"{edit.prompt} {edit.new}" for edit in edits)]
    assert events == [*made, *(["asked"] * 3 if column != "nothing" else [])] and batches == [5, 5, 2]


@pytest.mark.parametrize("method", ["ft", "ft_l"])
def test_fine_tuning_is_learned_and_undone(method: str, tmp_path: Path) -> None:
    model = asked.model()
    weights = {name: parameter.clone() for name, parameter in model.hf.named_parameters()}
    file = asked.zsre_file(tmp_path)

    def records(columns: str) -> list[Record]:
        return Run(evaluation(model, columns, data=file, rate=3e-2, bound=1.0), {})()

    before, tuned = records("nothing"), records(method)
    assert tuned[1]["efficacy"] == 1.0 and before[1]["efficacy"] < 1.0
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.hf.named_parameters())
    assert [record["score"] for record in records("nothing")] == [record["score"] for record in before]


def test_groups_are_as_large_as_the_number_of_edits_and_each_has_a_memory_of_its_own(tmp_path: Path) -> None:
    model = asked.model()
    made = evaluation(model, "slots", data=asked.counterfact_file(tmp_path), edits="1,2,6", count=5)
    groups = [(item.groups[0], item.together, len(item.content[0].edits)) for item in made.items]
    assert [one for one in groups if one[0] == "1 edit"] == [("1 edit", f"1/{n}", 1) for n in range(5)]
    assert [one for one in groups if one[0] == "2 edits"] == [("2 edits", f"2/{n}", 2) for n in (0, 0, 2, 2)]
    assert [one for one in groups if one[0] == "6 edits"] == [("6 edits", "6/0", 6)] * 6
    measuring: Any = made.measure
    told = [measuring._memory(column_of("slots"), item.content[0]) for item in made.items[5:9:2]]
    assert [[record.text for record in memory.writes] for memory in told] == [
        [edit.statement for edit in item.content[0].edits] for item in made.items[5:9:2]
    ]


def test_more_edits_are_asked_about_under_the_same_settings(tmp_path: Path) -> None:
    model = asked.model()
    for data in (None, asked.counterfact_file(tmp_path)):
        few, more = (evaluation(model, "nothing", data=data, edits="1", count=count) for count in (2, 4))
        assert few.settings == more.settings
        assert [(item.key, item.content) for item in few.items] == [(item.key, item.content) for item in more.items[:2]]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"edits": "7"}, "has 6 edits, and 7"),
        ({"count": 7}, "has 6 edits, and 7"),
        *(({"edits": wrong}, "numbers from 1 with commas") for wrong in ("0", "1,0", "-1", "many", "1,,2", "")),
    ],
)
def test_evaluation_refuses_what_it_cannot_measure(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=message):
        evaluation(asked.model(), "slots", data=asked.counterfact_file(tmp_path), **more)
    with pytest.raises(InvalidInputError, match="no column 'oracle'"):
        evaluation(asked.model(), "oracle")


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
        made = evaluation(asked.model(), "nothing,slots", data=tmp_path / "edits.json")
        figures = Report.of(made, Run(made, {})(), {}).rows[0]["metrics"]
        assert set(figures) == metrics
        parts = [figures[name]["value"] for name in metrics - {"score"}]
        expected = len(parts) / sum(1 / part for part in parts) if all(parts) else 0.0
        assert figures["score"]["value"] == pytest.approx(expected)
