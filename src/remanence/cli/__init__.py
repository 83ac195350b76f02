"""The command line: thin. Everything heavy is imported where it is needed, so that `--help` is quick."""

from typing import Annotated

import typer

from remanence.cli import asking, demonstration, evaluations, memories, planning, setup, store, training
from remanence.cli.shared import OneLineErrors, examples

app = typer.Typer(
    name="remanence",
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="A latent memory for decoder-only language models, written in one forward pass.",
    epilog=examples(
        "remanence demo",
        "remanence write notes.mem notes.txt",
        'remanence ask notes.mem "Where was Alice Brown born?" --sources',
        "remanence show notes.mem",
        "remanence eval retention --count 50 --plot retention.png",
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        from remanence import __version__

        typer.echo(f"remanence {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


app.add_typer(demonstration.app)
app.add_typer(setup.app)
app.add_typer(memories.app)
app.add_typer(asking.app)
app.add_typer(training.app)
app.add_typer(planning.app)
app.add_typer(evaluations.app, name="eval")
app.add_typer(store.app, name="store")
