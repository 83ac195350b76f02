"""The model card: what a trained model came of, and how to load it, written from the run."""

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remanence.environment import device_name, versions
from remanence.training.trainer import MemoryTrainer

CARD = "README.md"
TEMPLATE = """---
library_name: remanence
tags: [memory, remanence]
{front}---

# {title}

A decoder with a latent memory, trained by `{recipe}`.

```python
from remanence import MemoryModel

model = MemoryModel.from_pretrained("{folder}")  # or where this folder lies now
memory = model.new_memory()
model.write(memory, "a text to remember")
print(model.generate(memory, "a prompt", max_new_tokens=20))
```

## Memory

{memory}

## Training

{training}

Settings:

{settings}

## Losses

{losses}
"""


def write_card(
    trainer: MemoryTrainer,
    folder: Path,
    *,
    recipe: str,
    base: str,
    data: Sequence[str],
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write `README.md` into the folder of a trained model.

    Args:
        recipe: what trained it; base: what it started from, "" for random weights; data: what it was trained on.
        settings: further ones, which the Trainer's arguments do not tell.
    """
    args = trainer.args
    assert trainer.optimizer is not None
    groups = trainer.optimizer.param_groups
    rates = sorted({group.get("initial_lr", group["lr"]) for group in groups}, reverse=True)
    about = {
        "base": base or "random weights",
        "data": ", ".join(data),
        "steps": f"{trainer.state.global_step:,} of {args.max_steps:,}",
        "batches per step": args.gradient_accumulation_steps * args.world_size,
        "processes": args.world_size,
        "optimizer": type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__,
        "learning rate at the top": ", ".join(f"{rate:g}" for rate in rates),
        "numbers in the optimizer's hands": f"{sum(p.numel() for group in groups for p in group['params']):,}",
        "seed": args.seed,
        "precision": "bfloat16 autocast" if args.bf16 else "float32",
        "device": device_name(args.device),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    text = TEMPLATE.format(
        front=f"base_model: {base}\n" if on_hub else "",
        title=folder.resolve().parent.name,
        recipe=recipe,
        folder=folder,
        memory=_list(_memory(trainer)),
        training=_list(about),
        settings=_list(settings or {}) or "as the recipe says.",
        losses=_losses(trainer.state.log_history),
    )
    (folder / CARD).write_text(text)


def _memory(trainer: MemoryTrainer) -> dict[str, Any]:
    model = trainer.memory_model
    about = {
        "slots per layer": f"{model.slots:,}",
        "slots per write": model.slots_per_write,
        "layers": len(model.backbone.layers),
        "adapters for writing and reading": "none" if model.adapters is None else f"LoRA, {model.adapters.settings}",
    }
    longterm = model.config.longterm
    if longterm is not None:
        about["long-term memory"] = f"{longterm.retrieved:,} slots retrieved of {longterm.capacity:,}"
    return about


def _list(about: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in about.items())


def _losses(history: Sequence[Mapping[str, Any]]) -> str:
    """The first and the last of each that was logged."""
    rows = ["| loss | first logged | last logged |", "|---|---|---|"]
    names = dict.fromkeys(name for entry in history for name in entry if name == "loss" or name.endswith("_loss"))
    for name in names:
        logged = [f"{entry[name]:.3f} (step {entry['step']})" for entry in history if name in entry]
        if name != "train_loss":
            rows.append(f"| {name} | {logged[0]} | {logged[-1]} |")
    return "\n".join(rows)
