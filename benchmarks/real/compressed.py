"""A learned writer of SmolLM2: questions about one passage that was compressed into fewer slots than it has tokens.

    remanence train smollm2_writer --output runs/writer -- base=path/to/smollm2 data=path/to/questions
    python benchmarks/run.py compressed --model runs/writer/model --data dev-v1.1.json

Each ratio cuts passages into chunks of so many tokens a slot. `nothing` is asked without the passage.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from real import questions
from remanence import MemoryModel
from remanence.evaluation.asking import ANSWER_TOKENS, hit
from remanence.evaluation.evidence import Asked
from remanence.evaluation.harness import Evaluation
from remanence.evaluation.metrics import Metric
from remanence.evaluation.told import Told


@dataclass(frozen=True)
class Settings(questions.Settings):
    ratios: list[int] = field(default_factory=lambda: [2, 4])


def evaluation(on: Settings) -> tuple[MemoryModel, Evaluation]:
    model = MemoryModel.from_pretrained(on.model)
    config = model.config

    def ask(one: Asked, told: Sequence[str], ratio: int) -> bool:
        model.config = config.replace(chunk=ratio * model.slots_per_write)
        memory = Told(model, told).memory
        asked: Any = [{"role": "user", "content": one.text}]
        return hit(str(model.generate(memory, asked, max_new_tokens=ANSWER_TOKENS, do_sample=False)), one.truths)

    ways: dict[str, questions.Way] = {"nothing": lambda one, told: ask(one, (), 1)}
    ways |= {f"{ratio} tokens a slot": partial(ask, ratio=ratio) for ratio in on.ratios}
    made = questions.evaluation_of("compressed", on, model, 1, ways, Metric("hit", "rate", compared=True))
    state = Path(on.model) / "trainer_state.json"  # of a checkpoint in the middle of training
    log = json.loads((state if state.exists() else state.with_name("training_log.json")).read_text(encoding="utf-8"))
    return model, replace(made, settings={**made.settings, "training": log.get("log_history") or log["log"]})
