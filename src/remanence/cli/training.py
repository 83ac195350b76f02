"""`remanence train`."""

from pathlib import Path
from typing import Annotated

import typer

from remanence.cli.places import require_output_folder
from remanence.cli.shared import examples, out

app = typer.Typer()


@app.command(
    epilog=examples(
        "remanence train smollm2 --data path/to/questions --minutes 120",
        "remanence train smollm2 --data path/to/questions --base path/to/another/decoder -- held_out=path/to/dev.json",
        "remanence train tiny",
        "remanence train tiny --output runs/tiny --resume --minutes 30",
        "remanence train tiny --optimizer grass",
        "remanence train tiny -- steps=200",
        "remanence train llama_3_1_8b --log-to tensorboard -- base=path/to/decoder long=path/to/documents",
    )
)
def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="A recipe that comes with the package (smollm2), or a Python file with a function train(output, *, "
            "resume, minutes)."
        ),
    ],
    extra: Annotated[
        list[str] | None, typer.Argument(metavar="[-- NAME=VALUE...]", help="More settings, if the recipe takes any.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for checkpoints. Default: runs/RECIPE.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    data: Annotated[
        str | None, typer.Option(help="Files or folders to train on, separated by commas, where a recipe takes them.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Folder of another decoder, where a recipe takes one.")] = None,
    optimizer: Annotated[
        str, typer.Option(help="adamw or grass, where a recipe leaves the choice; default: the recipe's own.")
    ] = "default",
    log_to: Annotated[
        str, typer.Option(help="tensorboard, trackio or none, where a recipe leaves the choice; default: none.")
    ] = "default",
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop after so long, with a checkpoint.")] = None,
) -> None:
    """Train a checkpoint by a recipe."""
    from remanence.training.recipes import load_recipe, settings_of

    run = load_recipe(recipe)
    options = {"optimizer": optimizer, "log_to": log_to, "data": data, "base": base}
    chosen = [f"{name}={value}" for name, value in options.items() if value not in (None, "default")]
    settings = settings_of(run, [*(extra or []), *chosen])
    output = output or Path("runs") / recipe.stem
    require_output_folder(output)
    result = run(output, resume=resume, minutes=minutes, **settings)
    if result is not None:
        out.print(f"trained: {result}", markup=False, soft_wrap=True)
