"""A retriever is trained for a text memory, on questions and the texts that answer them, against frozen slots.

Slots are encoded once. What is drawn at a step depends on the seed and the step alone.
"""

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from remanence.errors import InvalidInputError
from remanence.model.formats.adapters import file_of
from remanence.model.model import MemoryModel
from remanence.model.retriever import TokenRetriever, load_retriever, save_retriever
from remanence.training.recipes import training_arguments
from remanence.training.tasks.retriever_data import Features, RetrieverData, Told, lexical_scores
from remanence.training.tasks.retriever_heads import Batch, Heads, Segments
from remanence.training.tasks.task import Batch as Numbered
from remanence.training.tasks.task import Output, Task
from remanence.training.trainer import TaskTrainer, stopping_after, write_log

_WARM_UP = 40  # steps
_COMMON = 150  # tokens of questions that say nothing of what is asked
_EVERY = 100  # steps between two saves
_CHECKED = 400  # questions about what was held out
_FORMAT = 2  # of the state of a run


@dataclass(frozen=True)
class RetrieverSettings:
    """How a retriever is trained.

    Attributes:
        layers: whose slots it reads; size: numbers of a key.
        steps: in all; learning_rate falls from the first to the last as a cosine.
        asked: questions of a batch to begin with, and near: texts beside each that its words would find.
        conversations: every so many steps the batch is a conversation.
        drop: share of features that are left out; silent: of questions whose words are not looked at.
    """

    layers: tuple[int, ...]
    size: int = 64
    steps: int = 1500
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    asked: int = 16
    near: int = 2
    conversations: int = 3
    drop: float = 0.1
    silent: float = 0.25
    seed: int = 0


def train_retriever(
    model: MemoryModel,
    data: RetrieverData,
    folder: Path,
    settings: RetrieverSettings,
    *,
    minutes: float | None = None,
    told: Told | None = None,
) -> TokenRetriever | None:
    """Train a retriever, or go on with what the folder holds; writes `retriever.safetensors` into it.

    Returns the one that found held-out texts best; None while there are steps left to take.

    Args:
        folder: features, the state of the run, and what comes out.
        minutes: stop after so many, with everything kept to go on later.
        told: of features and scores that are made.

    Raises:
        InvalidInputError: nothing to train on, or the folder belongs to another run.
    """
    task = RetrieverTask(model, data, folder, settings, told)
    args = training_arguments(
        folder, steps=settings.steps, save_steps=_EVERY, log_steps=_EVERY, bf16=False, use_cpu=True, max_grad_norm=5.0
    )
    trainer = TaskTrainer(
        task, args=args, optimizers=task.optimizer(), callbacks=[_Checking(task), *stopping_after(minutes)]
    )
    done = trainer.run(resume=True)
    write_log(trainer, folder / "curve.json", steps=trainer.state.global_step)
    return load_retriever(folder / file_of("retriever")) if done else None


class RetrieverTask(Task):
    """Batches are a `Batch` of questions against texts, and a seed.

    Attributes:
        best: how well the retriever in the folder finds what was held out.
    """

    trained: Heads

    def __init__(
        self, model: MemoryModel, data: RetrieverData, folder: Path, settings: RetrieverSettings, told: Told | None
    ) -> None:
        if not data.questions or len(data.texts) != len(data.conversations):
            raise InvalidInputError("a retriever is trained on questions, and on texts with a conversation number each")
        folder.mkdir(parents=True, exist_ok=True)
        _require_same(folder / "run.json", _identity(model, data, settings))
        questions = Features(model, [q.question for q in data.questions], folder / "questions", settings.layers, told)
        texts = Features(model, data.texts, folder / "texts", settings.layers, told)
        torch.manual_seed(settings.seed)
        super().__init__(Heads(texts.rows.shape[1], settings.size, settings.drop))
        self.data, self.settings, self.folder, self.questions, self.texts = data, settings, folder, questions, texts
        held = data.held_out
        self.lexical, self.near = lexical_scores(data, folder, told)
        self._held, self._checked = sorted(held), list[int]()
        self._asked_of: dict[int, list[int]] = defaultdict(list)
        for number, question in enumerate(data.questions):
            if held.isdisjoint(question.texts):
                for text in question.texts:
                    self._asked_of[text].append(number)
            elif held.issuperset(question.texts):
                self._checked.append(number)
        random.Random(settings.seed).shuffle(self._checked)
        self._turns: dict[int, list[int]] = defaultdict(list)
        for text, conversation in enumerate(data.conversations):
            if conversation >= 0 and text not in held:
                self._turns[conversation].append(text)
        self._talks = [number for number, texts in self._turns.items() if any(map(self._asked_of.get, texts))]
        self._others = [text for text in range(len(data.texts)) if text not in held]
        asked_of = sorted({number for numbers in self._asked_of.values() for number in numbers})
        self._plain = [n for n in asked_of if data.conversations[data.questions[n].texts[0]] < 0]
        counts = Counter(token for ids in self.questions.ids for token in ids)
        self._common = {token for token, _ in counts.most_common(_COMMON)}
        self.best = self._found = -1.0

    def optimizer(self) -> tuple[AdamW, LambdaLR]:
        """And its schedule: a short warm-up, and a cosine that ends at 2 %."""
        heads, settings = self.trained, self.settings
        vectors = [p for p in heads.parameters() if p.ndim < 2 and p is not heads.fusion]
        matrices = [p for p in heads.parameters() if p.ndim == 2]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors},
            {"params": [heads.fusion], "lr": 5 * settings.learning_rate},
        ]
        optimizer = AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / _WARM_UP) * (0.51 + 0.49 * math.cos(math.pi * step / settings.steps))

        return optimizer, LambdaLR(optimizer, rate)

    def batch(self, number: int) -> Numbered:
        rng = random.Random(f"{self.settings.seed} {number}")
        seed = rng.randrange(2**63)
        return {"batch": (seed, self._batch(rng, number)), "task": "retriever"}

    def forward(self, batch: tuple[int, Batch], name: str, seed: int) -> tuple[Tensor, Output]:
        torch.manual_seed(batch[0])  # of dropout
        return self.trained.loss(batch[1]), Output()

    def figures(self) -> dict[str, Any]:
        return {"found": round(self._found, 4)}

    def place(self) -> dict[str, Any]:
        return {"best": self.best}

    def go_to(self, place: dict[str, Any]) -> None:
        self.best = place["best"]

    def check(self) -> None:
        """Keep the retriever if it finds what was held out better than before."""
        self._found = self.found()
        if self._found > self.best or not self._checked:
            self.best = self._found
            save_retriever(self.retriever(), self.folder / file_of("retriever"))

    @torch.no_grad()
    def found(self) -> float:
        """Mean reciprocal rank of the right text among all that were held out; 0 where nothing was."""
        if not self._checked:
            return 0.0
        heads = self.trained.eval()
        ranks: list[Tensor] = []
        held = self.texts.segments(self._held)
        keys = heads.keys(held)
        for start in range(0, min(len(self._checked), _CHECKED), 64):
            numbers = self._checked[start : min(start + 64, _CHECKED)]
            batch = self._against(numbers, self._held, held)
            scores = heads.scores(batch, keys)
            best = scores.masked_fill(~batch.right, -torch.inf).amax(1, keepdim=True)
            ranks.append((scores > best).sum(1) + 1)
        heads.train()
        return float((1 / torch.cat(ranks)).mean())

    def _batch(self, rng: random.Random, number: int) -> Batch:
        talk = self._talks and (number % self.settings.conversations == self.settings.conversations - 1)
        numbers, texts = self._conversation(rng) if talk or not self._plain else self._passages(rng)
        batch = self._against(numbers, texts)
        silent = torch.tensor([rng.random() < self.settings.silent for _ in numbers])
        for row in silent.nonzero()[:, 0].tolist():
            own = slice(int(batch.questions.starts[row]), int(batch.questions.starts[row + 1]))
            batch.kept[own] = self._kept(rng, numbers[row])
        return batch._replace(silent=silent)

    def _against(self, numbers: Sequence[int], texts: Sequence[int], chunks: Segments | None = None) -> Batch:
        """Questions against texts, with all their words. `chunks`: of the texts, where these are at hand."""
        place = {text: at for at, text in enumerate(texts)}
        right = torch.zeros(len(numbers), len(texts), dtype=torch.bool)
        for row, number in enumerate(numbers):
            right[row, [place[text] for text in self.data.questions[number].texts]] = True
        asked, held = self.questions.segments(numbers), chunks or self.texts.segments(texts)
        kept = torch.ones(len(asked.rows), dtype=torch.bool)
        lexical = self.lexical[torch.tensor(numbers)][:, torch.tensor(texts)].float()
        return Batch(asked, held, kept, lexical, right, torch.zeros(len(numbers), dtype=torch.bool))

    def _passages(self, rng: random.Random) -> tuple[list[int], list[int]]:
        """Questions, the texts that answer them, texts that their words would find, and what is asked about those."""
        texts: dict[int, None] = {}
        for number in rng.sample(self._plain, min(self.settings.asked, len(self._plain))):
            near = self.near[number]
            texts |= dict.fromkeys(
                [*self.data.questions[number].texts, *rng.sample(near, min(self.settings.near, len(near)))]
            )
        numbers: dict[int, None] = {}
        for text in texts:
            own = self._asked_of.get(text, [])
            numbers |= dict.fromkeys(rng.sample(own, min(2, len(own))))
        texts |= dict.fromkeys(text for number in numbers for text in self.data.questions[number].texts)
        return list(numbers), self._filled(rng, list(texts))

    def _conversation(self, rng: random.Random) -> tuple[list[int], list[int]]:
        texts = self._turns[rng.choice(self._talks)]
        numbers = list(dict.fromkeys(number for text in texts for number in self._asked_of.get(text, [])))
        return rng.sample(numbers, min(70, len(numbers))), self._filled(rng, list(texts))

    def _filled(self, rng: random.Random, texts: list[int]) -> list[int]:
        """At least four wrong texts for every question."""
        others = rng.sample(self._others, min(12, len(self._others)))
        return texts if len(texts) >= 12 else list(dict.fromkeys([*texts, *others]))

    def _kept(self, rng: random.Random, number: int) -> Tensor:
        """A question some of whose words that the answering text has are left out, unless little would be left."""
        ids, texts = self.questions.ids[number], self.data.questions[number].texts
        own = {token for text in texts for token in self.texts.ids[text]} - self._common
        kept = torch.tensor([token not in own or rng.random() < 0.5 for token in ids])
        return kept if int(kept.sum()) >= 3 else torch.ones_like(kept)

    def retriever(self) -> TokenRetriever:
        return self.trained.retriever(self.settings.layers, self.questions.scale, self.texts.scale)


class _Checking(TrainerCallback):
    """Checks a task now and then, before its state is saved."""

    def __init__(self, task: RetrieverTask) -> None:
        self._task = task

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % _EVERY == 0 or state.global_step == state.max_steps:
            self._task.check()


def _identity(model: MemoryModel, data: RetrieverData, settings: RetrieverSettings) -> str:
    digest = blake2b(digest_size=16)
    for part in (*data.texts, *map(str, (data.conversations, sorted(data.held_out))), *map(str, data.questions)):
        digest.update(part.encode() + b"\0")
    made_of = {
        "format": _FORMAT,
        "model": model.fingerprint(),
        "data": digest.hexdigest(),
        "settings": asdict(settings),
    }
    return json.dumps(made_of, indent=2)


def _require_same(file: Path, identity: str) -> None:
    if not file.is_file():
        file.write_text(identity)
    elif file.read_text() != identity:
        raise InvalidInputError(
            f"{file.parent} holds a run of an earlier version, on other data or with other settings; name another "
            "folder"
        )
