"""A recipe is a Python file with a function `train(output, *, resume, minutes)`. Found without importing torch."""

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remanence.errors import InvalidInputError

if TYPE_CHECKING:
    from transformers import TrainingArguments

Recipe = Callable[..., Any]


def load_recipe(path: Path) -> Recipe:
    """The `train` function of a recipe: a file, or by its name one that comes with the package.

    Raises:
        FileNotFoundError: no such file; lists the package's recipes, and files in the folder named.
        InvalidInputError: the file is no Python, or has no function `train`.
    """
    named = sorted(file.stem for file in (Path(__file__).parent.parent / "recipes").glob("[!_]*.py"))
    if not path.exists() and str(path) in named:
        packaged: Recipe = importlib.import_module(f"remanence.recipes.{path}").train
        return packaged
    if not path.is_file():
        files = sorted(str(file) for file in path.parent.glob("*.py"))
        raise FileNotFoundError(f"there is no recipe {path}; recipes here: {', '.join([*named, *files])}")
    train = getattr(_load_module(path), "train", None)
    if not callable(train):
        raise InvalidInputError(f"{path} has no function train(output, *, resume, minutes), so it is no recipe")
    return train


def _load_module(path: Path) -> Any:
    """A recipe's file as a module.

    Raises:
        InvalidInputError: the file is no Python.
    """
    spec = importlib.util.spec_from_file_location(f"remanence_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InvalidInputError(f"{path} is no Python file; a recipe has a function train(output, *, resume, minutes)")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and worker processes look a module up by its name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


REPORTERS = {"none": (), "tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",)}


def reporters(name: str) -> str:
    """What `remanence train --log-to` names, as the Trainer's `report_to`.

    Raises:
        InvalidInputError: another name, or its package is not installed; says how to install it.
    """
    if name not in REPORTERS:
        raise InvalidInputError(f"training logs go to {', '.join(REPORTERS)}, not to {name!r}")
    packages = REPORTERS[name]
    if packages and not any(importlib.util.find_spec(package) for package in packages):
        raise InvalidInputError(f"the package {name} is not installed; pip install {name}, or take --log-to none")
    return name


def training_arguments(
    output: Path,
    *,
    steps: int,
    save_steps: int,
    warmup: int = 0,
    decay: int | None = None,
    log_steps: int = 50,
    log_to: str = "none",
    **others: Any,
) -> "TrainingArguments":
    """What the recipes have in common: one batch per step, as the recipe builds it; bfloat16 where autocast allows; a
    learning rate that is held and falls over the last `decay` steps, if a number is given.

    `others`: of the Trainer's, in place of these.
    """
    import torch
    from transformers import TrainingArguments

    common: dict[str, Any] = {
        "per_device_train_batch_size": 1,
        "train_sampling_strategy": "sequential",
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "max_grad_norm": 1.0,
        "save_total_limit": 2,
        "seed": 0,
        "remove_unused_columns": False,
    }
    if decay is not None:
        falling = {"num_decay_steps": decay, "min_lr_ratio": 0.02}
        common |= {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": falling}
    return TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        warmup_steps=warmup,
        save_steps=save_steps,
        logging_steps=log_steps,
        report_to=reporters(log_to),
        **{**common, **others},
    )


def settings_of(recipe: Recipe, words: list[str]) -> dict[str, Any]:
    """`name=value` words as keyword arguments of a recipe; values are JSON where they can be read so, else text.

    Raises:
        InvalidInputError: another form, or a name that the recipe does not take; says which it takes.
    """
    common = ("output", "resume", "minutes")
    known = [name for name in inspect.signature(recipe).parameters if name not in common]
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not equals or name not in known:
            takes = f"NAME=VALUE with one of: {', '.join(known)}" if known else "no more settings"
            raise InvalidInputError(f"the recipe does not take {word!r}; it takes {takes}")
        settings[name] = _value(value)
    return settings


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
