"""Questions about passages of SQuAD and Natural Questions that were told: one alone, among others, or not at all.

| memory | what it holds |
|---|---|
| 1 | the passage |
| 4 (up to 16) | the passage and three others, read together |
| +0 | the passages that are asked about, 200 of them |
| +1000 | the same and, written after them, 1,000 others |
| all | all passages of the file |
| untold | as +0, without the passage: the right answer is that it was not told |

The questions are the same in each. They are those whose shortest answer has at most 4 tokens. Memories of up to 16
passages are read whole, others as the model would read them. Of Natural Questions only the second half of the file is
used, so that the first is free to be trained on. A memory that is read whole is read whatever the reader makes of it,
so that hits are those of reading alone; in the others, what it refuses counts as missed.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from remanence.errors import InvalidInputError
from remanence.evaluation.columns import Column
from remanence.evaluation.evidence import Asked, Corpus, Part, of_corpora
from remanence.evaluation.harness import Evaluation, settings_of
from remanence.evaluation.passages import ANSWER_LIMIT, read_passages
from remanence.evaluation.registry import Command
from remanence.evaluation.scores import normalised
from remanence.model.model import MemoryModel
from remanence.texts import read_text, token_ids

MEMORIES = "1,4,+0,all,untold"
ASKED_ABOUT = 200  # passages
LONGEST = 1024  # tokens of a passage; of SQuAD none is longer, of Natural Questions some tables are
_WHOLE = 16  # passages at most that are read together


@dataclass(frozen=True)
class Questions:
    """The passages of a file in the order in which they are told, and the questions about the first of them.

    The evidence of a question is the number of its passage.
    """

    passages: list[str]
    articles: list[str]
    asked: list[Asked]


def read_questions(path: Path, tokenizer: Any, seed: int = 0) -> Questions:
    """Of a SQuAD v1.1 file, or of the second half of a Natural Questions file; the seed sets the order.

    Raises:
        FileNotFoundError: no such file.
        InvalidInputError: another format, or no question with a short answer.
    """
    held = read_passages(path)
    if _is_natural(path):
        held = held[len(held) // 2 :]
    held = [passage for passage in held if len(token_ids(tokenizer, passage.text)) <= LONGEST]
    rng = random.Random(seed)
    rng.shuffle(held)
    asked = []
    for number, passage in enumerate(held[:ASKED_ABOUT]):
        for question in passage.questions:
            truths = tuple(truth for truth in question.truths if normalised(truth))
            if any(len(token_ids(tokenizer, truth)) <= ANSWER_LIMIT for truth in truths):
                text = question.text.removeprefix("Question: ").removesuffix(" Answer:")
                asked.append((text, truths, number))
    if not asked:
        raise InvalidInputError(f"{path} has no question whose answer has at most {ANSWER_LIMIT} tokens")
    rng.shuffle(asked)
    mixed = [Asked(str(key), text, "", truths, (number,)) for key, (text, truths, number) in enumerate(asked)]
    return Questions([passage.text for passage in held], [passage.article for passage in held], mixed)


def _is_natural(path: Path) -> bool:
    return "nq_annotated_gold" in read_text(path).partition("\n")[0]


COMMAND = Command(
    columns="nothing,oracle,bm25_1,bm25_4",
    also=("fits",),
    examples=(
        "--data dev-v1.1.json",
        "--data dev-v1.1.json --memories 1,4 --count 300 --resume runs/squad --json squad.json",
        "--data dev-v1.1.json --memories +0,+10,+100,+1000 --columns slots",
        "--data nq-open-oracle.jsonl --memories untold,+0 --count 200 --columns slots",
    ),
)


def evaluation(
    model: MemoryModel,
    columns: Sequence[Column],
    *,
    data: Annotated[Path, typer.Option(help="A SQuAD v1.1 file, or Natural Questions with the passages that answer.")],
    memories: Annotated[
        str,
        typer.Option(
            help="What the memory holds: 1 (the passage), 4 (and three others, read together), +0 (the 200 passages "
            "that are asked about), +1000 (and as many others, written after them), all, untold (not the passage)."
        ),
    ] = MEMORIES,
    count: Annotated[int, typer.Option(min=1, help="Questions, the same for each memory.")] = 100,
    seed: Annotated[int, typer.Option(help="Another seed, other passages and questions.")] = 0,
    folder: Path | None = None,
) -> Evaluation:
    """Questions about passages that were told: one alone, among others, with writes after it, or not at all.

    Asked are the questions whose shortest answer has at most 4 tokens. A hit is an answer of 12 tokens in which a right
    one stands. Of Natural Questions, the second half of the file is used. Figures stand with the interval that holds
    95 %, and beside the difference to the passage as text, question by question.
    """
    questions = read_questions(data, model.tokenizer, seed)
    names = dict.fromkeys(name.strip() for name in memories.split(","))
    settings = {
        **settings_of(data),
        "passages": len(questions.passages),
        "asked_about": min(ASKED_ABOUT, len(questions.passages)),
        "answer_limit": ANSWER_LIMIT,
        "read_whole": _WHOLE,
        "seed": seed,
    }
    corpora = [one for name in names for one in corpora_of(questions, name, columns, count) if one.columns]
    return of_corpora(model, "squad", settings, corpora, columns, common=questions.passages, folder=folder)


def corpora_of(questions: Questions, name: str, columns: Sequence[Column], count: int) -> list[Corpus]:
    """One of the memories, as it is for each question where that hangs on the question.

    Text slots alone can forget a passage. The newest text is the same behind all longer memories.

    Raises:
        InvalidInputError: there is no such memory, or the file has too few passages for it.
    """
    total, later, asked = len(questions.passages), name.removeprefix("+"), questions.asked[:count]
    first = min(ASKED_ABOUT, total)
    if name == "untold":
        slots = tuple(column.name for column in columns if column.shows == "slots")
        never = Corpus(name, (), (), after=first, title="its passage not told", columns=slots)
        return [
            replace(never, asked=(replace(one, evidence=(), answerable=False),), forgotten=one.evidence[0])
            for one in asked
        ]
    whole = name.isdecimal() and 1 <= int(name) <= _WHOLE
    if whole:
        wanted, title = int(name), "1 passage" if name == "1" else f"{name} passages"
    elif name == "all":
        wanted, title = total, f"all {total:,} passages"
    elif name.startswith("+") and later.isdecimal():
        wanted = first + int(later)
        title = f"{first:,} passages" + (f", {int(later):,} writes later" if int(later) else "")
    else:
        raise InvalidInputError(f"there is no memory {name!r}; there are {MEMORIES}, numbers up to {_WHOLE}, +1000")
    if wanted > total:
        raise InvalidInputError(f"memory {name} takes {wanted:,} passages, but the file has {total:,}")
    short = tuple(column.name for column in columns if column.shows != "fits" or wanted <= ASKED_ABOUT)
    if not whole:
        return [Corpus(name, (), tuple(asked), after=wanted, title=title, columns=short)]
    found = []
    for one in asked:
        passages, place = among_others(questions, one, wanted)
        own = replace(one, evidence=(place,))
        found.append(Corpus(name, tuple(map(Part, passages)), (own,), title=title, columns=short, read_whole=True))
    return found


def among_others(questions: Questions, asked: Asked, number: int) -> tuple[list[str], int]:
    """A passage among those of other articles, as many in all as `number`, and its place there."""
    passages, articles, [place] = questions.passages, questions.articles, asked.evidence
    own, rng = passages[place], random.Random(f"{place}/{asked.text}/{number}")
    others = [text for text, article in zip(passages, articles, strict=True) if article != articles[place]]
    if len(others) < number - 1:
        raise InvalidInputError("the file has too few articles for passages of others; ask about 1 passage only")
    told = [own, *rng.sample(others, number - 1)]
    rng.shuffle(told)
    return told, told.index(own)
