"""Documents of our tasks, from local files that `--metadata '{"squad": FILE, "wikitext": FILE}'` names."""

import random
import re
from pathlib import Path
from typing import Any

from datasets import Dataset

from remanence.errors import InvalidInputError
from remanence.evaluation.asking import hit
from remanence.evaluation.passages import read_passages
from remanence.evaluation.scores import exact_match, f1, normalised
from remanence.texts import first_line, read_text

_TITLE = re.compile(r"^ = [^=].* = $", re.MULTILINE)  # of an article of WikiText


def _path(name: str, given: str | None) -> Path:
    if given is None:
        raise InvalidInputError(f'name the file of this task: --metadata \'{{"{name}": "FILE"}}\'')
    return Path(given)


def squad(*, squad: str | None = None, **_: Any) -> dict[str, Dataset]:
    """Questions of a SQuAD v1.1 or Natural Questions file."""
    passages = read_passages(_path("squad", squad))
    rows = [
        {"prompt": question.text, "answers": list(question.truths)} for one in passages for question in one.questions
    ]
    return {"test": Dataset.from_list(rows)}


def squad_choice(*, squad: str | None = None, **_: Any) -> dict[str, Dataset]:
    """The same, each with its answer among three others that stand in the same article; those that have no three go."""
    articles: dict[str, list[Any]] = {}
    for passage in read_passages(_path("squad", squad)):
        articles.setdefault(passage.article, []).extend(passage.questions)
    rows = []
    for article, questions in articles.items():
        for number, question in enumerate(questions):
            own, rng = set(map(normalised, question.truths)), random.Random(f"{article}/{number}")
            others = {normalised(other.truth): other.truth for other in questions}
            wrong = [truth for key, truth in others.items() if key not in own]
            if len(wrong) >= 3:
                choices = [question.truth, *rng.sample(wrong, 3)]
                rng.shuffle(choices)
                rows.append({"prompt": question.text, "choices": choices, "right": choices.index(question.truth)})
    if not rows:
        raise InvalidInputError(f"{squad} has no article with four different answers")
    return {"test": Dataset.from_list(rows)}


def wikitext(*, wikitext: str | None = None, **_: Any) -> dict[str, Dataset]:
    """The articles of a WikiText file, as they stand there."""
    text = read_text(_path("wikitext", wikitext))
    starts = [found.start() for found in _TITLE.finditer(text)] or [0]
    return {"test": Dataset.from_list([{"page": text[a:b]} for a, b in zip(starts, [*starts[1:], None], strict=True)])}


def scored(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Of the first line of an answer, as `remanence eval squad` counts it."""
    said, truths = first_line(results[0]), doc["answers"]
    return {"hit": float(hit(said, truths)), "exact_match": exact_match(said, truths), "f1": f1(said, truths)}
