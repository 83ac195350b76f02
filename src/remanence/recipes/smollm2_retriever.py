"""The retriever of SmolLM2-135M-Instruct: finds what a question is about among the chunks of a text memory.

    remanence train smollm2_retriever -- base=path/to/model data=path/to/questions held_out=path/to/dev.json

`data` and `held_out` are those of the reader. What the reader is validated on is not trained on here either: the
retriever that finds it best is kept.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from remanence import MemoryModel
from remanence.data.conversations import Post, conversations
from remanence.errors import InvalidInputError
from remanence.model.formats.adapters import file_of
from remanence.recipes.smollm2 import questions_of
from remanence.training.questions import PAGE, TALK, QuestionSet
from remanence.training.tasks.retriever import RetrieverSettings, train_retriever
from remanence.training.tasks.retriever_data import Asked, RetrieverData

SETTINGS = RetrieverSettings(layers=(2, 8, 14))
TURNS = 4200
LEFT_OUT = ("babi",)  # files whose questions are the same about many passages
POSTS = ("reddit",)  # files whose passages are told as turns of conversations too


def train(
    output: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    base: str,
    data: str,
    held_out: str,
    steps: int = SETTINGS.steps,
) -> Path | None:
    """Train it, or go on with what `output` holds.

    Returns:
        The file `retriever.safetensors`; None while there are steps left to take.
    """
    if not resume and (output / "run.json").exists():
        raise InvalidInputError(f"{output} holds a run already; go on with --resume, or name another folder")
    # No layer above those that the retriever reads is run.
    hf = AutoModelForCausalLM.from_pretrained(base, num_hidden_layers=max(SETTINGS.layers) + 1)
    model = MemoryModel.attach(hf, AutoTokenizer.from_pretrained(base))
    settings = replace(SETTINGS, steps=steps)
    texts = texts_of(*questions_of(data, held_out))
    made = train_retriever(model, texts, output, settings, minutes=minutes, told=_print)
    return None if made is None else output / file_of("retriever")


def texts_of(train: QuestionSet, validation: QuestionSet) -> RetrieverData:
    """Passages and what is asked about them, and turns of conversations that are made of posts."""
    texts: list[str] = []
    numbers: list[int] = []
    asked: list[Asked] = []
    together: dict[str, int] = {}
    for part in (validation, train):
        places: dict[int, int] = {}
        for passage, topic in _used(part):
            places[passage] = len(texts)
            texts.append(part.passages[passage])
            page = topic.partition("#")[0]
            numbers.append(together.setdefault(page, len(together)) if page.startswith((PAGE, TALK)) else -1)
        answered = [q for q in part.questions if q.answers and q.passages[0] in places]
        asked += [Asked(q.text, tuple(places[passage] for passage in q.passages)) for q in answered]
        if part is validation:
            held_out = frozenset(range(len(texts)))
    for turn in conversations(list(_posts(train)), turns=TURNS, seed=SETTINGS.seed):
        asked += [Asked(question, (len(texts),)) for question in turn.questions]
        texts.append(turn.text)
        numbers.append(len(together) + turn.conversation)
    return RetrieverData(texts, numbers, asked, held_out)


def _used(part: QuestionSet) -> Iterator[tuple[int, str]]:
    """Passages that are asked about, with their topics."""
    for passage in sorted({passage for question in part.questions for passage in question.passages}):
        if not part.topics[passage].startswith(LEFT_OUT):
            yield passage, part.topics[passage]


def _posts(part: QuestionSet) -> Iterator[Post]:
    about: dict[int, list[tuple[str, tuple[str, ...]]]] = {}
    for question in part.questions:
        if part.topics[question.passages[0]].startswith(POSTS):
            about.setdefault(question.passages[0], []).append((question.text, question.answers))
    return (Post(part.passages[passage], questions) for passage, questions in about.items())


def _print(what: str, done: int, total: int) -> None:
    print(f"{what}: {done:,} of {total:,}", flush=True)
