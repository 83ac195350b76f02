"""Training a learned writer on passages: what a step asks, and that the loss of answers falls."""

from pathlib import Path

import pytest
import torch
from torch.optim import AdamW

from remanence import MemoryModel
from remanence.errors import InvalidInputError
from remanence.training.curriculum import Curriculum
from remanence.training.questions import QuestionSet
from remanence.training.recipes import training_arguments
from remanence.training.tasks.compression import RECITE, CompressionSettings, CompressionTask
from remanence.training.tasks.pool_task import PoolBatch
from remanence.training.trainer import MemoryTrainer
from tests.support import tiny
from tests.support.tiny import decoder, with_memory

SETTINGS = CompressionSettings(chunks=[16, 24], passages=3, chunks_per_row=2, questions=2, recited=6)


def model() -> MemoryModel:
    return with_memory(decoder(vocab_size=300), tokenizer=tiny.tokenizer())


def questions() -> QuestionSet:
    made = QuestionSet()
    for name, town in (("Alice", "Oslo"), ("Bob", "Lima"), ("Carol", "Rome"), ("Dan", "Bern")):
        number = made.add_passage(f"{'It rained a lot that year. ' * 3}{name} was born in {town}.", "people")
        made.ask(f"Where was {name} born?", [town], [number])
    return made


def test_steps_cut_passages_around_what_is_asked() -> None:
    reading = model()
    task = CompressionTask(reading, questions(), SETTINGS)
    longest = set()
    for number in range(6):
        made = task.batch(number, recite=False)["batch"]
        assert isinstance(made, PoolBatch)
        longest.add(max(made.lengths))
        assert made.prompts.examples == 3 and len(made.chunks) == 3
        assert torch.equal(made.targets, torch.eye(3).bool())  # each row is about the passage of its number
        assert all(row in written for row, written in enumerate(made.order.tolist()))
        rows = made.prompts.ids.unflatten(1, (3, -1)), made.prompts.labels.unflatten(1, (3, -1))
        for ids, labels, chunk in zip(*rows, made.chunks, strict=True):
            said = [reading.tokenizer.decode(one[one >= 0]) for one in labels]
            written = reading.tokenizer.decode(chunk)
            assert all(answer.removesuffix(reading.tokenizer.eos_token).strip() in written for answer in said[:2])
            assert said[2].strip() in written and RECITE in reading.tokenizer.decode(ids[2])
    assert longest == {16, 24}
    assert torch.equal(task.batch(5, recite=True)["batch"].chunks, task.batch(5, recite=True)["batch"].chunks)
    assert task.batch(5, recite=True)["batch"].prompts.examples == 1
    with pytest.raises(InvalidInputError, match="5 passages"):
        CompressionTask(reading, questions(), CompressionSettings(chunks=[16], passages=5))


def test_passages_are_learned_to_be_recited(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reading = model()
    task = CompressionTask(reading, questions(), SETTINGS)
    trainer = MemoryTrainer(
        reading,
        through="all",
        args=training_arguments(tmp_path, steps=40, warmup=4, decay=5, save_steps=100, log_steps=10),
        curriculum=Curriculum(lambda step, _: task.batch(step, recite=step < 10), levels=1, steps=40, threshold=()),
        optimizers=(AdamW(reading.parameters(), lr=5e-3), None),
    )
    trainer.train()
    losses = [entry["memory_loss"] for entry in trainer.state.log_history if "memory_loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
