"""Commands that ask a memory: ask, search, chat."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remanence.cli.places import require_memory_place
from remanence.cli.shared import (
    JsonFlag,
    MemoryArgument,
    ModelOption,
    envelope_of,
    examples,
    load_memory,
    load_model,
    note,
    out,
    require_model,
)
from remanence.errors import InvalidInputError

if TYPE_CHECKING:
    from remanence import MemoryModel
    from remanence.memory import Memory

app = typer.Typer()

QuestionArgument = Annotated[str, typer.Argument(help="In plain words.")]


@app.command(
    epilog=examples(
        'remanence ask notes.mem "Where was Alice Brown born?"',
        'remanence ask notes.mem "Where was Alice Brown born?" --sources',
        'remanence ask notes.mem "..." --json',
    )
)
def ask(
    memory: MemoryArgument,
    question: QuestionArgument,
    model: ModelOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096, help="The longest answer, in tokens.")] = 64,
    sources: Annotated[bool, typer.Option("--sources", help="Also list the writes that it was read from.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask a memory one question. It is not changed."""
    from remanence.details import ranked, writes_table

    held, engine = opened(memory, question, model)
    answer = engine.ask(held, question, max_new_tokens=max_new_tokens)
    found = ranked(held.writes, answer.sources)
    if as_json:
        typer.echo(json.dumps({"question": question, "answer": answer.text, "found": answer.found, "sources": found}))
        return
    typer.echo(answer.text)
    if not answer.found:
        note("the memory was not told this; these are the model's own words")
    if sources and found:
        out.print(writes_table(found))
    elif sources:
        out.print("The memory names no write that this was read from." if answer.found else "Nothing was read for it.")


@app.command(
    epilog=examples(
        'remanence search notes.mem "Where was Alice Brown born?"',
        'remanence search notes.mem "Alice Brown" --count 20 --json',
    )
)
def search(
    memory: MemoryArgument,
    question: QuestionArgument,
    model: ModelOption = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Most writes to list.")] = 5,
    as_json: JsonFlag = False,
) -> None:
    """List the writes that score best against a question, whatever they score."""
    from remanence.details import ranked, writes_table

    held, engine = opened(memory, question, model)
    found = ranked(held.writes, engine.search(held, question, count))
    if as_json:
        typer.echo(json.dumps({"question": question, "writes": found}))
    else:
        out.print(writes_table(found) if found else "The memory holds nothing that could be found.")


@app.command(epilog=examples("remanence chat notes.mem"))
def chat(memory: MemoryArgument, model: ModelOption = None) -> None:
    """Ask and tell, line by line. The memory, made if it is not there, is saved when you leave."""
    require_memory_place(memory)
    if memory.exists():
        envelope_of(memory)
    from remanence.chatting import chat_loop

    held = load_memory(memory) if memory.exists() else None
    engine = load_model(model)
    if held is not None:
        require_model(engine, held, memory)
    chat_loop(out, engine, engine.new_memory() if held is None else held, memory)


def opened(memory: Path, question: str, model: str | None) -> "tuple[Memory, MemoryModel]":
    """A memory and the model to ask it with."""
    if not question.strip():
        raise InvalidInputError("there is no question; put it in quotes behind the memory")
    held = load_memory(memory)
    engine = load_model(model)
    require_model(engine, held, memory)
    return held, engine
