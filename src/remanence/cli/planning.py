"""`remanence plan`."""

import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from remanence.cli.shared import JsonFlag, examples, out
from remanence.errors import InvalidInputError

if TYPE_CHECKING:
    from rich.table import Table

    from remanence.optim.plan import Method, Plan

app = typer.Typer()


class Number(StrEnum):
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class Kind(StrEnum):
    TEXT = "text"
    MEMORY = "memory"


@app.command(
    epilog=examples(
        "remanence plan --model llama-13b --rank 128 --tokens 256 --room 40",
        "remanence plan --model path/to/model --tokens 2048 --checkpointing --method grass --method adamw",
        "remanence plan --task memory --model llama-3.1-8b --rank 16 --writes 8 --checkpointing --method lora",
    )
)
def plan(
    task: Annotated[
        Kind, typer.Option(help="text: predicting it; memory: training a learned memory, which writes and reads.")
    ] = Kind.TEXT,
    model: Annotated[
        str, typer.Option(help="llama-60m, -350m, -1b, -7b, -13b, llama-3.1-8b; or a directory or hub id.")
    ] = "llama-7b",
    rank: Annotated[int, typer.Option(min=1, help="Of Grass, GaLore and LoRA.")] = 128,
    tokens: Annotated[int, typer.Option(min=1, help="In each sequence; of memory, behind it.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Sequences per micro-batch.")] = 1,
    writes: Annotated[int, typer.Option(min=1, help="Memory: chunks written in a step.")] = 8,
    chunk: Annotated[int, typer.Option(min=1, help="Memory: tokens of a chunk.")] = 512,
    slots: Annotated[int, typer.Option(min=1, help="Memory: slots of a layer's pool.")] = 12_800,
    slots_per_write: Annotated[int, typer.Option(min=1, help="Memory: slots that a chunk becomes.")] = 256,
    method: Annotated[
        list[str] | None, typer.Option(help="adamw, galore, lora or grass; repeatable. Default: all.")
    ] = None,
    dtype: Annotated[Number, typer.Option(help="Of weights and activations.")] = Number.BFLOAT16,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Keep the inputs of layers only for the backward pass.")
    ] = False,
    room: Annotated[float | None, typer.Option(help="Of the device, in GB: say what fits.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell what memory a training step will take, by method, before anything is allocated."""
    import torch

    from remanence.optim.plan import METHODS, configuration
    from remanence.optim.plan import plan as make_plan
    from remanence.training.plan import Writes, plan_memory

    if unknown := set(method or ()) - set(METHODS):
        raise InvalidInputError(f"--method is one of {', '.join(METHODS)}, not {unknown.pop()!r}")
    try:
        config = configuration(model)
    except ValueError as error:
        raise InvalidInputError(str(error)) from error
    make: Callable[..., Plan] = make_plan
    title = f"{batch} x {tokens} tokens, {dtype.value}, rank {rank}, GiB"
    if task is Kind.MEMORY:
        make = partial(plan_memory, writes=Writes(writes, chunk, slots, slots_per_write))
        title = f"{writes} x {chunk} tokens written, {title}"
    settings = {"rank": rank, "tokens": tokens, "batch": batch, "dtype": getattr(torch, dtype.value)}
    try:
        plans = {
            one: make(config, one, checkpointing=checkpointing, **settings)
            for one in METHODS
            if not method or one in method
        }
    except ValueError as error:
        raise InvalidInputError(f"{model}: {error}") from error
    if as_json:
        typer.echo(json.dumps({name: {**vars(made), "total": made.total} for name, made in plans.items()}))
    else:
        out.print(table_of(f"{model}, {title}", plans, room))


def table_of(title: str, plans: "Mapping[Method, Plan]", room: float | None) -> "Table":
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, box=SIMPLE)
    table.title_justify = "left"
    parts = {"weights": "weights", "gradients": "grads", "state": "state", "activations": "acts", "transient": "other"}
    for name in ("", *parts.values(), "peak", "refresh", *([f"{room:g} GB"] if room else [])):
        table.add_column(name, justify="right")
    for name, made in plans.items():
        sizes = [*(getattr(made, part) for part in parts), made.total, made.total + made.refresh]
        fits = [] if room is None else ["fits" if sizes[-1] < room * 1e9 else "no"]
        table.add_row(name, *(f"{size / 2**30:,.2f}" for size in sizes), *fits)
    return table
