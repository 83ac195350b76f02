"""When SmolLM2's memory was told what it is asked: fits the weights of a trained reader and retriever.

    remanence train smollm2_found -- model=path/to/model data=path/to/questions held_out=path/to/dev.json

`data` and `held_out` are those of the reader. Asked are the questions that it is validated on, which neither it nor the
retriever was trained on, and general prompts, such as it was trained to refuse. The output folder is the checkpoint,
with the weights.
"""

import random
import shutil
from itertools import groupby
from pathlib import Path

from remanence import MemoryModel
from remanence.data.notes import general_prompt
from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.recipes.smollm2 import NAME, questions_of
from remanence.training.found import Observation, fitted, observed, shares
from remanence.training.questions import PAGE, TALK, Question, QuestionSet

QUESTIONS = 160  # of each kind
PASSAGES = 100  # of those on no page, told together
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
    rerank: int | None = None,
) -> Path:
    """Fit the weights; returns the folder of the checkpoint that has them.

    Args:
        model: a folder with a reader and a retriever.
        min_score, text_min_score, near_best, rerank: settings to change.
    """
    if resume or minutes is not None:
        raise InvalidInputError("the weights are fitted in one go, within minutes; leave out --resume and --minutes")
    if not Path(model).is_dir() or output.exists():
        raise InvalidInputError(f"model= is a folder with a checkpoint, and {output} a folder that is not there yet")
    loaded = MemoryModel.from_pretrained(model)
    loaded.optimize_for_cpu()
    changed = {"min_score": min_score, "text_min_score": text_min_score, "near_best": near_best, "rerank": rerank}
    config = loaded.config.retrieval.replace(**{name: to for name, to in changed.items() if to is not None})
    loaded.config = loaded.config.replace(retrieval=config)
    seen: list[Observation] = []
    for kind, passages, questions in memories_of(questions_of(data, held_out)[1]):
        seen += observed(loaded, kind, passages, questions)
        print(f"{kind}: {len(questions)} questions of {len(passages)} passages", flush=True)
    config = fitted(config, seen)
    for kind, figures in shares(config, seen).items():
        print(f"{kind}: {figures}")
    print(f"score {config.score_weight}, refusal {config.refusal_weight}, bias {config.found_bias}")
    loaded.config = loaded.config.replace(retrieval=config)
    shutil.copytree(model, output)
    loaded.save_pretrained(output, base=NAME)
    return output


def memories_of(questions: QuestionSet) -> list[tuple[str, list[str], list[Question]]]:
    """Kind, what is told together, and what is asked about it: each page among paragraphs of novels, each conversation,
    passages of no page, and the same passages with prompts that no memory answers."""
    rng, novels = random.Random(0), list(paragraphs())[:BESIDE]
    made, known = [], set[str]()
    for topic, places in groupby(range(len(questions.passages)), key=questions.topics.__getitem__):
        kind = "pages" if topic.startswith(PAGE) else "talks"
        if topic.startswith((PAGE, TALK)) and (name := topic.partition("#")[0]) not in known:
            known.add(name)
            made.append((kind, *_told(questions, list(places), novels if kind == "pages" else [])))
    others = [q for q in questions.questions if len(q.passages) == 1 and q.answers]
    asked = {q.passages[0] for q in others if not questions.topics[q.passages[0]].startswith((PAGE, TALK))}
    passages, about = _told(questions, rng.sample(sorted(asked), min(PASSAGES, len(asked))), [])
    prompts = dict.fromkeys(general_prompt(rng) for _ in range(2 * QUESTIONS))
    made += [("passages", passages, about), ("prompts", passages, [Question(text, (), ()) for text in prompts])]
    counts = {kind: sum(one[0] == kind for one in made) for kind, *_ in made}
    return [(k, told, rng.sample(qs, min(len(qs), QUESTIONS // counts[k]))) for k, told, qs in made]


def _told(questions: QuestionSet, places: list[int], beside: list[str]) -> tuple[list[str], list[Question]]:
    """Some passages of a set and others, and what is asked about the first, by their new places."""
    at = {place: number for number, place in enumerate(places)}
    asked = [q for q in questions.questions if all(place in at for place in q.passages)]
    about = [Question(q.text, q.answers, tuple(at[place] for place in q.passages)) for q in asked]
    return [*(questions.passages[place] for place in places), *beside], about
