"""Retention is scored as it is defined: by stubs that remember, forget or guess in ways that are known."""

import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from remanence import MemoryModel
from remanence.config import LongTermConfig
from remanence.data.biographies import ATTRIBUTES
from remanence.errors import InvalidInputError
from remanence.evaluation import retention
from remanence.evaluation.harness import Evaluation, Record, Run
from remanence.evaluation.retention import chance
from tests.support import asked
from tests.support.readers import Reader
from tests.support.tiny import decoder, tokenizer, with_memory

N, K = 24, 6
CORPUS = json.loads(resources.files("remanence.data").joinpath("biographies.json").read_text(encoding="utf-8"))


def model_of(context: int = 256, **settings: Any) -> MemoryModel:
    hf = decoder(vocab_size=300, num_hidden_layers=1, max_position_embeddings=context)
    return with_memory(hf, slots=N, k=K, tokenizer=tokenizer(), **settings)


def evaluation(model: MemoryModel, columns: str = "pool", **more: Any) -> Evaluation:
    return asked.evaluation(retention, model, columns, **{"people": "listed", "distances": "0", "count": 2, **more})


def records(made: Evaluation, column: str) -> dict[int, list[Record]]:
    """By distance."""
    found: dict[int, list[Record]] = {}
    for record in Run(made, {})():
        if record["column"] == column:
            found.setdefault(int(record["item"].split("/")[1]), []).append(record)
    return found


def rates(made: Evaluation, column: str = "pool") -> list[float]:
    return [sum(one["right"] for one in those) / len(those) for those in records(made, column).values()]


def recall(known: list[str], prompt: str) -> str:
    """Answer a question by looking it up in texts, as a perfect reader would."""
    for attribute in ATTRIBUTES:
        for wording in CORPUS["attributes"][attribute]["questions"]:
            pattern = re.escape(f"Question: {wording} Answer:").replace(re.escape("{name}"), "(.+)")
            if asked := re.fullmatch(pattern, prompt.strip()):
                values = set(CORPUS["attributes"][attribute]["values"])
                words = {word for text in known if asked[1] in text for word in re.findall(r"\w+", text)}
                return " " + next(iter(words & values), "unknown") + ".\nQuestion: and so on"
    raise AssertionError(f"no wording of a question: {prompt}")


Remembering = Callable[..., Reader]


@pytest.fixture
def remembering(monkeypatch: pytest.MonkeyPatch) -> Remembering:
    return lambda model, **settings: Reader(model, monkeypatch, recall, **settings)


def test_who_remembers_everything_is_always_right_and_who_has_nothing_never(
    remembering: Remembering,
) -> None:
    model = model_of()
    remembering(model)
    made = evaluation(model, "pool,nothing", distances="0,1,9", count=7, batch=3)
    assert rates(made) == [1.0, 1.0, 1.0] and rates(made, "nothing") == [0.0, 0.0, 0.0]
    assert made.items[8].groups == ("listed, 9 writes later",)


def test_distance_counts_the_writes_after_the_fact(remembering: Remembering) -> None:
    model = model_of()
    remembering(model, kept=3)
    assert rates(evaluation(model, distances="0..5", count=4)) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_memory_is_brought_to_steady_state_before_the_fact(remembering: Remembering) -> None:
    model = model_of()
    stub = remembering(model)
    Run(evaluation(model, distances="0,3"), {})()
    name = re.compile(r"[A-Z]\w+ [A-Z]\w+")
    for texts in stub.texts.values():
        assert len(texts) == 2 * N // K + 1 + 3
        prompts = [
            prompt for prompt in stub.prompts if (asked := name.search(prompt)) and asked[0] in texts[2 * N // K]
        ]
        assert len(prompts) == 2


def test_fits_holds_the_fact_until_later_text_pushes_it_out_and_oracle_holds_it_always(
    remembering: Remembering,
) -> None:
    model = model_of(context=2048)
    stub = remembering(model)
    made = evaluation(model, "fits,oracle,bm25_4", distances="0,2,16", count=3, batch=2)
    assert [rates(made, column) for column in ("fits", "oracle", "bm25_4")] == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert stub.texts == {}  # no memory is written for text
    assert max(len(model.tokenizer(prompt)["input_ids"]) for prompt in stub.prompts) == 2048 - 8
    counts = {column: [] for column in ("fits", "oracle", "bm25_4")}
    for column, prompts in zip(counts, (stub.prompts[:2], stub.prompts[6:8], stub.prompts[12:14]), strict=True):
        counts[column] = [prompt.count("</s>") for prompt in prompts]
    assert counts == {"fits": [1, 1], "oracle": [1, 1], "bm25_4": [4, 4]}


def test_columns_are_asked_the_same_questions(remembering: Remembering) -> None:
    model = model_of(context=2048)
    stub = remembering(model)
    made = evaluation(model, "pool,nothing,fits")
    Run(made, {})()
    asked = ["Question:" + prompt.rpartition("Question:")[2].rstrip() for prompt in stub.prompts]
    assert asked[0:2] == asked[2:4] == asked[4:6] and len(asked) == 6


@pytest.mark.parametrize("columns", ["pool", "longterm", "pool,longterm"])
def test_memories_are_written_once_and_read_as_the_columns_say(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(longterm=LongTermConfig(retrieved=8), retrieval_size=8)
    kept, read = list[bool](), list[bool]()
    write, generate = model.write, model.generate

    def writing(memories: Any, texts: Any) -> Any:
        kept.append(memories[0].longterm is not None)
        return write(memories, texts)

    def generating(memories: Any, prompts: Any, **more: Any) -> Any:
        read.append(memories[0].longterm is not None)
        return generate(memories, prompts, **more)

    monkeypatch.setattr(model, "write", writing)
    monkeypatch.setattr(model, "generate", generating)
    Run(evaluation(model, columns, distances="0,2"), {})()
    assert kept == ["longterm" in columns] * (2 * N // K + 1 + 2)
    assert read == [name == "longterm" for name in columns.split(",")] * 2


def test_an_answer_is_scored_by_its_exact_case(remembering: Remembering, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    plain = remembering(model).generate
    monkeypatch.setattr(model, "generate", lambda *args, **kwargs: [text.swapcase() for text in plain(*args, **kwargs)])
    assert rates(evaluation(model, count=3)) == [0.0]


def test_same_seed_gives_the_same_writes_and_questions_whatever_the_batch(
    remembering: Remembering,
) -> None:
    model = model_of()
    runs = []
    for seed, batch in ((1, 4), (1, 3), (2, 4)):
        stub = remembering(model)
        Run(evaluation(model, distances="2", count=4, batch=batch, seed=seed), {})()
        runs.append((list(stub.texts.values()), stub.prompts))
    assert runs[0] == runs[1] != runs[2]


def test_both_kinds_of_people_are_asked_about_and_settings_say_how(remembering: Remembering) -> None:
    model = model_of()
    made = evaluation(model, people="both", seed=4, int8=False)
    assert [item.groups[0] for item in made.items] == ["listed, 0 writes later"] * 2 + ["unlisted, 0 writes later"] * 2
    about = {"listed": {"facts": 3, "chance": chance()}, "unlisted": {"facts": 3}}
    assert made.settings == {"slots": N, "slots_per_write": K, "seed": 4, "int8": False, **about}


def test_chance_is_that_of_guessing_one_value() -> None:
    assert 0.005 < chance() <= 0.01


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"distances": ""}, "lack a number"),
        ({"distances": "-1"}, "no number of writes"),
        ({"facts": 9}, "facts, not 9"),
        ({"people": "known"}, "listed, unlisted or both"),
        ({"tier": "disk"}, "no long-term slots; leave --tier"),
        ({"int8": True}, "no long-term slots; leave --tier"),
        ({"columns": "slots"}, "has a learned writer"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        evaluation(model_of(), **wrong)


def test_text_slots_are_in_no_pool_so_there_is_no_retention(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="text slots, which are in no pool"):
        evaluation(asked.model(), "nothing")
