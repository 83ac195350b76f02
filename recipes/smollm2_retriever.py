"""The retriever of SmolLM2-135M-Instruct: finds what a question is about among the chunks of a text memory.

    remanence train recipes/smollm2_retriever.py -- base=path/to/model data=path/to/questions

`data` is a folder with `squadshifts/new_wiki_v1.0.json` and `reddit_v1.0.json`; of `nq/nq-open-oracle.jsonl` the first
half is taken. Passages that stand in `squad_dev_v1.1/*.json` are left out.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from remanence import MemoryModel
from remanence.data.conversations import Post, conversations
from remanence.errors import InvalidInputError
from remanence.model.formats.adapters import file_of
from remanence.training.questions import own_questions
from remanence.training.retriever import Asked, RetrieverData, RetrieverSettings, train_retriever

SETTINGS = RetrieverSettings(layers=(2, 8, 14))
TURNS = 4200
Answered = tuple[str, list[str]]  # a question and its answers


def train(
    output: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    base: str,
    data: str,
    steps: int = SETTINGS.steps,
) -> Path | None:
    """Train it, or go on with what `output` holds, which is there as `retriever.safetensors` from the first save on.

    Returns:
        The file; None while there are steps left to take.
    """
    if not resume and (output / "run.json").exists():
        raise InvalidInputError(f"{output} holds a run already; go on with --resume, or name another folder")
    # No layer above those that the retriever reads is run.
    hf = AutoModelForCausalLM.from_pretrained(base, num_hidden_layers=max(SETTINGS.layers) + 1)
    model = MemoryModel.attach(hf, AutoTokenizer.from_pretrained(base))
    settings = replace(SETTINGS, steps=steps)
    made = train_retriever(model, questions(Path(data)), output, settings, minutes=minutes, told=_print)
    return None if made is None else output / file_of("retriever")


def questions(folder: Path) -> RetrieverData:
    """Passages and what is asked about them, turns of conversations that are made of posts, and what comes with the
    package: pages and conversations."""
    test = {text for file in folder.glob("squad_dev_v1.1/*.json") for text, _ in _squad(file)}
    texts: list[str] = []
    asked: list[Asked] = []

    def add(text: str, about: list[Answered]) -> None:
        texts.append(text)
        asked.extend(Asked(question, (len(texts) - 1,)) for question, _ in about)

    posts = []
    for name in ("new_wiki", "reddit"):
        for text, about in _squad(folder / f"squadshifts/{name}_v1.0.json"):
            if text not in test:
                add(text, about)
                posts += [Post(text, about)] if name == "reddit" else []
    for text, about in _natural_questions(folder / "nq/nq-open-oracle.jsonl"):
        if text not in test:
            add(text, about)
    numbers = [-1] * len(texts)
    for turn in conversations(posts, turns=TURNS, seed=SETTINGS.seed):
        add(turn.text, [(question, []) for question in turn.questions])
        numbers.append(turn.conversation)
    own = own_questions()
    topics = [topic.partition("#")[0] for topic in own.topics]
    pages = {topic: max(numbers) + 1 + place for place, topic in enumerate(dict.fromkeys(topics))}
    first = len(texts)
    texts += own.passages
    numbers += [pages[topic] for topic in topics]
    answered = [question for question in own.questions if question.answers]
    asked += [Asked(question.text, tuple(first + passage for passage in question.passages)) for question in answered]
    return RetrieverData(texts, numbers, asked)


def _squad(file: Path) -> Iterator[tuple[str, list[Answered]]]:
    for article in json.loads(file.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            about = [(qa["question"].strip(), [a["text"] for a in qa["answers"]]) for qa in paragraph["qas"]]
            if answered := [each for each in about if each[1]]:
                yield paragraph["context"].strip(), answered


def _natural_questions(file: Path) -> Iterator[tuple[str, list[Answered]]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    for line in lines[: len(lines) // 2]:  # the other half is a test
        record: dict[str, Any] = json.loads(line)
        text = record["ctxs"][0]["text"].strip()
        if any(answer.lower() in text.lower() for answer in record["answers"]):
            yield text, [(record["question"], record["answers"])]


def _print(what: str, done: int, total: int) -> None:
    print(f"{what}: {done:,} of {total:,}", flush=True)
