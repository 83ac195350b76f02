"""`remanence plan`."""

import json
from collections.abc import Mapping
from enum import StrEnum
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


@app.command(
    epilog=examples(
        "remanence plan --model llama-13b --rank 128 --tokens 256 --room 40",
        "remanence plan --model path/to/model --tokens 2048 --checkpointing --method grass --method adamw",
    )
)
def plan(
    model: Annotated[
        str, typer.Option(help="llama-60m, -350m, -1b, -7b, -13b, llama-3.1-8b; or a directory or hub id.")
    ] = "llama-7b",
    rank: Annotated[int, typer.Option(min=1, help="Rows of Grass, rank of GaLore and LoRA.")] = 128,
    tokens: Annotated[int, typer.Option(min=1, help="In each sequence.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Sequences per micro-batch.")] = 1,
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

    if unknown := set(method or ()) - set(METHODS):
        raise InvalidInputError(f"--method is one of {', '.join(METHODS)}, not {unknown.pop()!r}")
    try:
        config = configuration(model)
    except ValueError as error:
        raise InvalidInputError(str(error)) from error
    sizes = {"rank": rank, "tokens": tokens, "batch": batch}
    try:
        plans = {
            one: make_plan(config, one, **sizes, dtype=getattr(torch, dtype.value), checkpointing=checkpointing)
            for one in METHODS
            if not method or one in method
        }
    except ValueError as error:
        raise InvalidInputError(f"{model}: {error}") from error
    if as_json:
        typer.echo(json.dumps({name: {**vars(made), "total": made.total} for name, made in plans.items()}))
    else:
        title = f"{model}, {batch} x {tokens} tokens, {dtype.value}, rank {rank}, GiB"
        out.print(table_of(title, plans, room))


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
