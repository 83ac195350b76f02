"""LoCoMo (Maharana et al., ACL 2024): questions about very long conversations of two people, by kind of question.

F1 is counted as the paper's program does it: words in lower case, without punctuation and articles, stemmed; of
several answers with commas between, each against the best part of what was said.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from string import punctuation
from typing import Annotated, Any

import typer

from remanence.errors import InvalidInputError
from remanence.evaluation.columns import Column
from remanence.evaluation.evidence import Asked, Corpus, Part, of_corpora, told_as
from remanence.evaluation.harness import Evaluation, digest_of
from remanence.evaluation.registry import Command
from remanence.model.model import MemoryModel
from remanence.texts import read_text

ANSWER_TOKENS = 32
KINDS = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
_PUNCTUATION = str.maketrans("", "", punctuation)


def read_conversations(path: Path, seed: int = 0) -> list[Corpus]:
    """Of a file, or of all .json files of a folder; the seed sets the order of questions.

    A file holds one conversation (`session_1`, `session_1_date_time`, …, `qa`), or a list of them as published (with
    `conversation` and `qa`).

    Raises:
        FileNotFoundError: no such file, or none in the folder.
        InvalidInputError: another format.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"there is no .json file in {path}")
    found = []
    for file in files:
        try:
            content = json.loads(read_text(file))
            listed = content if isinstance(content, list) else [content]
            for number, one in enumerate(listed):
                name = file.stem if len(listed) == 1 else f"{file.stem}/{one.get('sample_id', number)}"
                found.append(_conversation(name, {**one, **one.get("conversation", {})}, seed))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(f'{file} is not in the format of LoCoMo ("session_1", …, "qa"): {error}') from error
    return found


def _conversation(name: str, content: dict[str, Any], seed: int) -> Corpus:
    turns: list[Part] = []
    numbers: dict[tuple[int, int], int] = {}
    for session, date, turn in _turns(content):
        text = turn["text"] + (f" [shares {turn['blip_caption']}]" if turn.get("blip_caption") else "")
        numbers[_place(turn["dia_id"])[0]] = len(turns)
        turns.append(Part(told_as(date, turn["speaker"], text), session))
    asked = []
    for number, one in enumerate(content["qa"]):
        answerable = one["category"] != 5
        truth = str(one["answer"] if answerable else one.get("adversarial_answer", one.get("answer")))
        if one["category"] == 3:
            truth = truth.split(";")[0].strip()
        places = [place for text in one["evidence"] for place in _place(text)]
        evidence = tuple(dict.fromkeys(numbers[place] for place in places if place in numbers))
        sessions = tuple(dict.fromkeys(turns[place].section for place in evidence))
        kind = KINDS[one["category"]]
        asked.append(Asked(str(number), one["question"], kind, (truth,), evidence, sessions, answerable))
    random.Random(f"{seed}/{name}").shuffle(asked)
    return Corpus(name, tuple(turns), tuple(asked))


def _turns(content: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Session, date and turn, in the order of time."""
    sessions = [name for name in content if re.fullmatch(r"session_\d+", name) and content[name]]
    dated = [(_time(content[f"{name}_date_time"]), int(name.split("_")[1]), name) for name in sessions]
    for _, _, name in sorted(dated):
        for turn in content[name]:
            yield name, content[f"{name}_date_time"], turn


def _time(text: str) -> datetime:
    """`1:56 pm on 8 May, 2023`"""
    return datetime.strptime(text.strip().upper(), "%I:%M %p ON %d %B, %Y")


def _place(text: str) -> list[tuple[int, int]]:
    """Session and turn of each place that is named: `D1:3`, also `D8:6; D9:17` and `D:11:26`."""
    return [(int(session), int(turn)) for session, turn in re.findall(r"D:?(\d+):(\d+)", text)]


COMMAND = Command(
    columns="nothing,oracle,bm25_1,bm25_4",
    also=("fits",),
    examples=(
        "--data locomo/30.json --count 20",
        "--data locomo --columns bm25_4,slots --resume runs/locomo --json locomo.json",
    ),
)


def evaluation(
    model: MemoryModel,
    columns: Sequence[Column],
    *,
    data: Annotated[Path, typer.Option(help="A file of LoCoMo, or a folder of them.")],
    count: Annotated[int | None, typer.Option(min=1, help="Questions in all. Default: every one.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other questions first.")] = 0,
    folder: Path | None = None,
) -> Evaluation:
    """Very long conversations, told turn by turn: evidence found, F1 of answers as published, by kind of question.

    recall 5 is the share of the turns that hold the answer among the five best. Questions about what was never told
    are right where the memory says so.
    """
    _stemmer()  # before the work
    conversations = read_conversations(data, seed)
    told = "\n".join(turn.text for one in conversations for turn in one.parts)
    settings = {"data": [one.name for one in conversations], "digest": digest_of(told), "seed": seed}
    return of_corpora(
        model,
        "locomo",
        settings,
        conversations,
        columns,
        tokens=ANSWER_TOKENS,
        score=score,
        count=count,
        folder=folder,
    )


def score(said: str, asked: Asked) -> float:
    """F1 of an answer, as published for its kind of question."""
    if asked.kind != KINDS[1]:
        return _f1(said, asked.truths[0])
    parts = said.split(",")
    truths = asked.truths[0].split(",")
    return sum(max(_f1(part, truth) for part in parts) for truth in truths) / len(truths)


def _f1(said: str, truth: str) -> float:
    ours, theirs = Counter(_stems(said)), Counter(_stems(truth))
    shared = (ours & theirs).total()
    return 2 * shared / (ours.total() + theirs.total()) if shared else 0.0


def _stems(text: str) -> list[str]:
    plain = re.sub(r"\b(a|an|the|and)\b", " ", text.lower().translate(_PUNCTUATION))
    return [_stemmer().stem(word) for word in plain.split()]


@cache
def _stemmer() -> Any:
    """The one that the published figures are taken with."""
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError as error:
        raise InvalidInputError("F1 as published needs the package nltk: pip install 'remanence[eval]'") from error
    return PorterStemmer()
