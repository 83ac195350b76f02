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
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from remanence.errors import InvalidInputError
from remanence.evaluation.asking import ANSWER_TOKENS, ANSWERED, Asking, record_of
from remanence.evaluation.columns import Column, reading_all
from remanence.evaluation.harness import Evaluation, Item, Record, digest_of
from remanence.evaluation.passages import ANSWER_LIMIT, read_passages
from remanence.evaluation.registry import Command
from remanence.evaluation.scores import normalised
from remanence.evaluation.told import Growing, Told
from remanence.model.model import MemoryModel
from remanence.texts import read_text, token_ids

MEMORIES = "1,4,+0,all,untold"
ASKED_ABOUT = 200  # passages
LONGEST = 1024  # tokens of a passage; of SQuAD none is longer, of Natural Questions some tables are
_WHOLE = 16  # passages at most that are read together


@dataclass(frozen=True)
class Asked:
    """A question, its answers, and the passage that holds them, by its number."""

    text: str
    truths: tuple[str, ...]
    passage: int


@dataclass(frozen=True)
class Questions:
    """The passages of a file in the order in which they are told, and the questions about the first of them."""

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
                asked.append(Asked(text, truths, number))
    if not asked:
        raise InvalidInputError(f"{path} has no question whose answer has at most {ANSWER_LIMIT} tokens")
    rng.shuffle(asked)
    return Questions([passage.text for passage in held], [passage.article for passage in held], asked)


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
    held, asking = _Held(model, questions, folder), Asking(model)
    items = []
    for name in dict.fromkeys(name.strip() for name in memories.split(",")):
        scene = held.scene(name)
        if those := tuple(column.name for column in columns if scene.has(column)):
            asked = enumerate(questions.asked[:count])
            items += [Item(f"{name}/{number}", (scene.title,), those, (scene, one)) for number, one in asked]
    return Evaluation(
        "squad",
        {
            "data": data.name,
            "digest": digest_of(data),
            "passages": len(questions.passages),
            "asked_about": held.first,
            "answer_limit": ANSWER_LIMIT,
            "read_whole": _WHOLE,
            "answer_tokens": ANSWER_TOKENS,
            "seed": seed,
        },
        items,
        columns,
        lambda column, those: [_measured(asking, column, held, *item.content) for item in those],
        ANSWERED,
        base="oracle",
    )


@dataclass(frozen=True)
class Scene:
    """One of the memories.

    Attributes:
        title: in the report.
        passages: how many it holds; whole: they are read together, and differ for each question.
        untold: the passage that is asked about is forgotten.
    """

    title: str
    passages: int
    whole: bool = False
    untold: bool = False

    def has(self, column: Column) -> bool:
        """Text slots alone can forget a passage. The newest text is the same behind all longer memories."""
        if self.untold:
            return column.shows == "slots"
        return column.shows != "fits" or self.passages <= ASKED_ABOUT


def _measured(asking: Asking, column: Column, held: "_Held", scene: Scene, asked: Asked) -> Record:
    told, right = held.told(scene, asked)
    with reading_all(held.model) if scene.whole else nullcontext():
        said = asking(column, told, asked.text, right)
    record = record_of(said, column, told, asked.truths, right, answerable=not scene.untold)
    if scene.whole:
        record.pop("found", None)  # it was read whatever it scored
    return record


class _Held:
    """What was told, made when it is first asked about; longer memories are forks of shorter ones.

    Attributes:
        first: passages that are asked about.
    """

    def __init__(self, model: MemoryModel, questions: Questions, folder: Path | None = None) -> None:
        self.model, self._questions = model, questions
        self.first = min(ASKED_ABOUT, len(questions.passages))
        self._shared = Growing(model, questions.passages, folder)
        self._own: tuple[tuple[Scene, Asked], tuple[Told, list[int]]] | None = None

    def scene(self, name: str) -> Scene:
        """
        Raises:
            InvalidInputError: there is no such memory, or the file has too few passages for it.
        """
        total, later = len(self._questions.passages), name.removeprefix("+")
        if name == "untold":
            return Scene("its passage not told", self.first, untold=True)
        if name == "all":
            return Scene(f"all {total:,} passages", total)
        if name.isdecimal() and 1 <= int(name) <= _WHOLE:
            wanted, title = int(name), "1 passage" if name == "1" else f"{name} passages"
            scene = Scene(title, wanted, whole=True)
        elif name.startswith("+") and later.isdecimal():
            wanted = self.first + int(later)
            title = f"{self.first:,} passages" + (f", {int(later):,} writes later" if int(later) else "")
            scene = Scene(title, wanted)
        else:
            raise InvalidInputError(f"there is no memory {name!r}; there are {MEMORIES}, numbers up to {_WHOLE}, +1000")
        if wanted > total:
            raise InvalidInputError(f"memory {name} takes {wanted:,} passages, but the file has {total:,}")
        return scene

    def told(self, scene: Scene, asked: Asked) -> tuple[Told, list[int]]:
        """What a memory was told, and which of its passages hold the answer."""
        if not scene.whole:
            told = self._shared.up_to(scene.passages)
            return (told.without(asked.passage), []) if scene.untold else (told, [asked.passage])
        if self._own is None or self._own[0] != (scene, asked):
            passages, place = among_others(self._questions, asked, scene.passages)
            self._own = (scene, asked), (Told(self.model, passages), [place])
        return self._own[1]


def among_others(questions: Questions, asked: Asked, number: int) -> tuple[list[str], int]:
    """A passage among those of other articles, as many in all as `number`, and its place there."""
    passages, articles = questions.passages, questions.articles
    own, rng = passages[asked.passage], random.Random(f"{asked.passage}/{asked.text}/{number}")
    others = [text for text, article in zip(passages, articles, strict=True) if article != articles[asked.passage]]
    if len(others) < number - 1:
        raise InvalidInputError("the file has too few articles for passages of others; ask about 1 passage only")
    told = [own, *rng.sample(others, number - 1)]
    rng.shuffle(told)
    return told, told.index(own)
