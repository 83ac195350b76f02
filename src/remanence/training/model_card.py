"""The model card: what a trained model came of, and how to load it, written from the run."""

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from remanence.environment import device_name, versions
from remanence.training.trainer import MemoryTrainer, write_log

CARD, LOG = "README.md", "training_log.json"


def finish(
    trainer: MemoryTrainer,
    folder: Path,
    *,
    recipe: str,
    base: str,
    data: Sequence[str],
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write the model that was trained into a folder, with its card and its curves; the rest as `write_card` has it."""
    trainer.memory_model.eval()
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        write_card(trainer, folder, recipe=recipe, base=base, data=data, settings=settings)
        write_log(trainer, folder / LOG, recipe=recipe, steps=trainer.state.global_step)
    trainer.accelerator.wait_for_everyone()


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
    args, model, groups = trainer.args, trainer.memory_model, trainer.optimizer.param_groups
    rates = sorted({group.get("initial_lr", group["lr"]) for group in groups}, reverse=True)
    memory = {
        "slots per layer": f"{model.slots:,}",
        "slots per write": model.slots_per_write,
        "layers": len(model.backbone.layers),
        "adapters for writing and reading": "none" if model.adapters is None else f"LoRA, {model.adapters.settings}",
    }
    if (longterm := model.config.longterm) is not None:
        memory["long-term memory"] = f"{longterm.retrieved:,} slots retrieved of {longterm.capacity:,}"
    training = {
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
    ModelCard.from_template(
        ModelCardData(library_name="remanence", tags=["memory", "remanence"], base_model=base if on_hub else None),
        template_path=str(Path(__file__).with_suffix(".md")),
        title=folder.resolve().parent.name,
        recipe=recipe,
        folder=folder,
        sections={"Memory": memory, "Training": training, "Settings": settings or {}},
        losses=list(_losses(trainer.state.log_history)),
    ).save(folder / CARD)


def _losses(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """The first and the last of each that was logged."""
    names = dict.fromkeys(name for entry in history for name in entry if name == "loss" or name.endswith("_loss"))
    for name in names:
        logged = [f"{entry[name]:.3f} (step {entry['step']})" for entry in history if name in entry]
        if name != "train_loss":
            yield name, logged[0], logged[-1]
