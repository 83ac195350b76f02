"""When SmolLM2's memory was told what it is asked: fits the weights of a trained reader and retriever.

    remanence train recipes/smollm2_found.py -- model=path/to/model data=path/to/questions held_out=path/to/dev.json

Asked are questions that neither was trained on: about the pages and conversations that are held out, and of `data`
those that the reader was validated on. The output folder is the checkpoint, with the weights.
"""

import random
import shutil
from itertools import groupby
from pathlib import Path

from remanence import MemoryModel
from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.recipes.smollm2 import VALIDATION
from remanence.training.found import Observation, fitted, observed, shares
from remanence.training.questions import Question, QuestionSet, load_questions, own_questions, passages_of

QUESTIONS = 160  # of each kind
PASSAGES = 100  # of `data`, told together
BESIDE = 100  # paragraphs of novels, told beside a page


def train(
    output: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    model: str,
    data: str,
    held_out: str,
    min_score: float | None = None,
    text_min_score: float | None = None,
    near_best: float | None = None,
) -> Path:
    """Fit the weights; returns the folder of the checkpoint that has them.

    Args:
        model: a folder with a reader and a retriever.
        data, held_out: as the reader was trained with.
        min_score, text_min_score, near_best: settings to change.
    """
    if resume or minutes is not None:
        raise InvalidInputError("the weights are fitted in one go, within minutes; leave out --resume and --minutes")
    loaded = MemoryModel.from_pretrained(model)
    loaded.optimize_for_cpu()
    changed = {"min_score": min_score, "text_min_score": text_min_score, "near_best": near_best}
    config = loaded.config.retrieval.replace(**{name: to for name, to in changed.items() if to is not None})
    loaded.config = loaded.config.replace(retrieval=config)
    seen: list[Observation] = []
    for kind, passages, questions in _memories(data, held_out):
        seen += observed(loaded, kind, passages, questions)
        print(f"{kind}: {len(seen):,} questions were asked", flush=True)
    config = fitted(config, seen)
    for kind, figures in shares(config, seen).items():
        print(f"{kind}: {figures}")
    print(f"score {config.score_weight}, refusal {config.refusal_weight}, bias {config.found_bias}")
    loaded.config = loaded.config.replace(retrieval=config)
    shutil.copytree(model, output, dirs_exist_ok=True)
    loaded.save_pretrained(output, base="smollm2")
    return output


def _memories(data: str, held_out: str) -> list[tuple[str, list[str], list[Question]]]:
    """Kind, what is told together, and what is asked about it."""
    rng, own, novels = random.Random(0), own_questions(held_out=True), list(paragraphs())[:BESIDE]
    made = []
    for topic, places in groupby(range(len(own.passages)), key=own.topics.__getitem__):
        kind = topic.split("_")[0]
        if not topic.endswith(("#1", "#2")):  # the same talk again
            made.append((kind, *_told(own, list(places), novels if kind == "pages" else [])))
    known = passages_of([Path(part) for part in held_out.split(",")])
    _, others = load_questions([Path(part) for part in data.split(",")]).without(known).split(VALIDATION)
    asked = [q for q in others.questions if len(q.passages) == 1 and q.answers]
    drawn = rng.sample(sorted({q.passages[0] for q in asked}), PASSAGES)
    made.append(("passages", *_told(others, drawn, [])))
    counts = {kind: sum(one[0] == kind for one in made) for kind, *_ in made}
    return [(k, told, rng.sample(qs, min(len(qs), QUESTIONS // counts[k]))) for k, told, qs in made]


def _told(questions: QuestionSet, places: list[int], beside: list[str]) -> tuple[list[str], list[Question]]:
    """Some passages of a set and others, and what is asked about the first, by their new places."""
    at = {place: number for number, place in enumerate(places)}
    asked = [q for q in questions.questions if all(place in at for place in q.passages)]
    about = [Question(q.text, q.answers, tuple(at[place] for place in q.passages)) for q in asked]
    return [*(questions.passages[place] for place in places), *beside], about
