"""When a text memory was told what it is asked: weights of the best chunk's score and of the reader's refusal.

Questions are asked of a memory that holds what answers them, and of the same memory after that was forgotten. A
logistic regression parts the two by the logits of the score and of the probability of beginning to refuse.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from remanence.config import RetrievalConfig, logit
from remanence.errors import InvalidInputError
from remanence.memory import Memory
from remanence.model import read
from remanence.model.choosing import refusal_token
from remanence.model.model import MemoryModel
from remanence.training.questions import Question

_DECAY = 1e-3
_NOT_TOLD = 2.0  # how much such a question counts: a wrong answer costs more than one that is missing


@dataclass(frozen=True)
class Observation:
    """A question that was asked.

    Attributes:
        kind: of question, for reports.
        told: whether the memory holds the answer.
        score: of the best chunk; 0 where nothing was read.
        refusing: the probability that the reader begins to refuse.
        first: whether the best chunk is of a passage that answers.
    """

    kind: str
    told: bool
    score: float
    refusing: float
    first: bool = False


@torch.no_grad()
def observed(
    model: MemoryModel, kind: str, passages: Sequence[str], questions: Sequence[Question]
) -> Iterator[Observation]:
    """Ask questions of a memory of passages, and again without those that answer, unless the answer stands elsewhere
    too. A question without an answer is asked once.

    Args:
        questions: about `passages`, by their places.
    """
    if model.config.retrieval.refusal is None:
        raise InvalidInputError("a reader that was trained to refuse is needed; the model has none")
    memory = model.new_memory()
    writes = [model.write(memory, passage).id for passage in passages]
    for question in questions:
        about = [writes[passage] for passage in question.passages]
        if question.answers:
            yield _asked(model, kind, memory, question.text, about, told=True)
            others = "\n".join(text for place, text in enumerate(passages) if place not in question.passages).lower()
            if not any(answer.lower() in others for answer in question.answers):
                without = memory.fork()
                for write in about:
                    model.forget(without, write)
                yield _asked(model, kind, without, question.text, [], told=False)
        else:
            yield _asked(model, kind, memory, question.text, [], told=False)


def _asked(
    model: MemoryModel, kind: str, memory: Memory, question: str, about: Sequence[int], *, told: bool
) -> Observation:
    content = [{"role": "user", "content": question}]
    made = model._reading(memory, content, None, False, None, query=question)
    made.refusal = None  # the forward pass must keep what is read: its logits are observed
    sources = read.found_writes(made)
    if not sources:
        return Observation(kind, told, 0.0, 1.0)
    logits = read.forward(model, made, {"logits_to_keep": 1}).logits[0, -1].float()
    write, score = sources[0]
    return Observation(kind, told, score, float(logits.softmax(-1)[refusal_token(model)]), write in about)


def fitted(config: RetrievalConfig, observations: Sequence[Observation]) -> RetrievalConfig:
    """The settings with weights that part what was told from what was not.

    Each kind of question counts the same among those that were told, and among those that were not, which count twice.

    Raises:
        InvalidInputError: nothing was told among what was read, or nothing was not.
    """
    seen = [one for one in observations if one.score > 0]
    if len({one.told for one in seen}) < 2:
        raise InvalidInputError("weights are fitted to questions that were told and to others that were not; add some")
    counts = {(one.kind, one.told): 0 for one in seen}
    for one in seen:
        counts[one.kind, one.told] += 1
    rows = torch.tensor([[logit(one.score), -logit(one.refusing), 1.0] for one in seen])
    told = torch.tensor([float(one.told) for one in seen])
    share = torch.tensor([(1.0 if one.told else _NOT_TOLD) / counts[one.kind, one.told] for one in seen])
    weights = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(rows @ weights, told, weight=share / share.mean())
        loss = loss + _DECAY * weights[:2].square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    score, refusal, bias = (round(weight, 2) for weight in weights.tolist())
    return config.replace(score_weight=score, refusal_weight=refusal, found_bias=bias)


def shares(config: RetrievalConfig, observations: Sequence[Observation]) -> dict[str, dict[str, float]]:
    """By kind: of the questions that were told the share that is found and whose best chunk is right, and of the others
    the share that is not found."""
    made: dict[str, dict[str, float]] = {}
    for kind in dict.fromkeys(one.kind for one in observations):
        told = [one for one in observations if one.kind == kind and one.told]
        others = [one for one in observations if one.kind == kind and not one.told]
        made[kind] = {
            "found": _mean([one.score > 0 and config.found(one.score, one.refusing) for one in told]),
            "first": _mean([one.first for one in told]),
            "not told": _mean([one.score == 0 or not config.found(one.score, one.refusing) for one in others]),
        }
    return made


def _mean(values: Sequence[bool]) -> float:
    return round(sum(values) / len(values), 3) if values else float("nan")
