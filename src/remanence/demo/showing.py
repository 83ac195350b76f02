"""What the demonstration on text slots shows, step by step."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from remanence.data.handbook import Asked, Book, among_unrelated
from remanence.demo.handbook import FirstToken, Reply, ask, first_token, forget, holds, tell, without_memory
from remanence.memory import Memory
from remanence.model.model import MemoryModel

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]

_WIDTH = 120  # columns at most: longer lines are hard to read
_CHARACTERS = 110  # of an answer


def show_book(
    out: Console, model: MemoryModel, memory: Memory, book: Book, unrelated: int, bar: Bar, started: float
) -> dict[str, Any]:
    """Tell a book among unrelated paragraphs, and show what the memory makes of it; returns the figures.

    Args:
        bar: opens a progress bar with a name; what it gives is called with (done, in all).
        started: `time.perf_counter()` of the beginning, loading the model counted.
    """
    show_told(out, model, memory, book, unrelated, bar)
    about: dict[str, Any] = {"source": book.source, "paragraphs": len(book.paragraphs), "unrelated": unrelated}
    replies = _show_questions(out, model, memory, book, bar)
    not_told = replies[len(book.questions) :]
    replies = replies[: len(book.questions)]
    speed = _show_speed(out, model, replies, book, unrelated, bar)
    forgotten = _show_forgotten(out, model, memory, book, replies) if book.forget is not None else None
    about |= {
        "questions": [reply.to_json() for reply in replies],
        "not_told": [reply.to_json() for reply in not_told],
        "forgotten": forgotten,
        "first_token": None if speed is None else vars(speed),
        "answered": sum(reply.right for reply in replies),
        "answered_without_memory": sum(reply.right_without for reply in replies),
        "right_paragraph_first": sum(reply.from_right_place(book.source) for reply in replies),
        "right_not_told": sum(reply.right for reply in not_told),
        "seconds": round(time.perf_counter() - started, 1),
    }
    out.print(_summary(about, book), style="bold", highlight=False, width=_width(out))
    return about


def show_told(out: Console, model: MemoryModel, memory: Memory, book: Book, unrelated: int, bar: Bar) -> None:
    """Tell a book among unrelated paragraphs."""
    told, began = among_unrelated(book, unrelated), time.perf_counter()
    with bar(f"telling {book.source}") as moved:
        tell(model, memory, told, lambda done: moved(done, len(told)))
    among = f" among {unrelated} of novels" if unrelated else ""
    text = f"{book.source}: {len(book.paragraphs)} paragraphs told{among}, in {time.perf_counter() - began:.0f} s."
    out.print(Text(f"{text} From here on the model has only its memory."), width=_width(out))


def show_commands(out: Console, command: str, model: str | None) -> None:
    """How to go on with a text of one's own; `model`: as --model takes it, None: the default."""
    option = "" if model is None else f" --model {model}"
    out.print("\nYour own text:", style="bold")
    for line in ("write notes.mem FILE", "chat notes.mem"):
        out.print(Text(f"  {command} {line}{option}", style="cyan"), soft_wrap=True)


def _show_questions(out: Console, model: MemoryModel, memory: Memory, book: Book, bar: Bar) -> list[Reply]:
    """The replies to all questions, those that were not told last, each shown when it is there."""
    every = [*book.questions, *book.not_told]
    with bar("asking without memory") as moved:
        moved(0, 1)
        without = without_memory(model, [asked.text for asked in every])
    out.print()
    out.print(
        Padding(_beside(Text("with memory"), Text("without memory"), style="dim"), (0, 0, 0, 4)), width=_width(out)
    )
    replies = []
    for number, (asked, own) in enumerate(zip(every, without, strict=True), 1):
        if number == len(book.questions) + 1:
            out.print(f"\nWhat {book.source} does not say", style="bold", highlight=False)
        reply = ask(model, memory, asked, own)
        replies.append(reply)
        _show_question(out, f"{number:>2}", asked)
        out.print(Padding(_beside(_said(reply), _said_without(reply)), (0, 0, 0, 4)), width=_width(out))
    return replies


def _show_forgotten(
    out: Console, model: MemoryModel, memory: Memory, book: Book, replies: list[Reply]
) -> dict[str, Any]:
    """Forget a paragraph, and ask again what it answered."""
    assert book.forget is not None
    before = next(reply for reply in replies if reply.asked.number == book.forget)
    forget(model, memory, book.source, book.forget)
    after = ask(model, memory, before.asked, before.without)
    gone = not (after.found and holds(after.text, after.asked.truths))
    out.print(f"\nParagraph {book.forget} forgotten", style="bold", highlight=False)
    _show_question(out, "", before.asked)
    parts = [(Text("before: "), _said(before)), (Text("now:    "), _said(after, right=gone))]
    for name, said in parts:
        out.print(Padding(name + said, (0, 0, 0, 4)), width=_width(out))
    return {"paragraph": book.forget, "gone": gone, **after.to_json()}


def _show_speed(
    out: Console, model: MemoryModel, replies: list[Reply], book: Book, unrelated: int, bar: Bar
) -> FirstToken | None:
    with bar("reading the same paragraphs as text") as moved:
        told = among_unrelated(book, unrelated)
        made = first_token(model, replies, told, lambda done: moved(done, len(replies)))
    if made is None:
        return None
    read = f"{made.tokens:g} tokens of {made.paragraphs:g} paragraph{'s' * (made.paragraphs != 1)}"
    text = (
        f"\nFirst token after {1e3 * made.memory:,.0f} ms from memory, finding what to read counted; "
        f"{1e3 * made.text:,.0f} ms where the same paragraphs are read again as text: "
        f"{made.text / made.memory:.1f} times as long (medians of {made.questions} questions: {read})."
    )
    out.print(Text(text), width=_width(out))
    return made


def _summary(about: dict[str, Any], book: Book) -> str:
    count = len(book.questions)
    text = f"\n{about['answered']} of {count} answered"
    if book.not_told:
        text += f", {about['right_not_told']} of {len(book.not_told)} not told"
    text += f"; without memory {about['answered_without_memory']} of {count}"
    if any(asked.number is not None for asked in book.questions):
        text += f". The right paragraph was found first for {about['right_paragraph_first']} of {count}"
    return f"{text}. {about['seconds']:.0f} s in all."


def _show_question(out: Console, number: str, asked: Asked) -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(min_width=2, no_wrap=True)
    grid.add_column()
    grid.add_row(Text(number, style="dim"), Text(asked.text, style="bold"))
    out.print()
    out.print(grid, width=_width(out))


def _said(reply: Reply, right: bool | None = None) -> Text:
    """What was said from memory, and below it where it is from."""
    text = _marked(reply.text if reply.found else "not told", reply.right if right is None else right)
    if reply.found and reply.read:
        source, number = reply.read[0]
        others = len(reply.read) - 1
        more = f", and {others} more" if others else ""
        text.append(f"\n  {source}, paragraph {number}{more}", style="dim")
    return text


def _said_without(reply: Reply) -> Text:
    if not reply.asked.truths:
        return Text(_cut(reply.without), style="dim")
    return _marked(reply.without, reply.right_without)


def _marked(answer: str, right: bool) -> Text:
    mark, style = ("✓", "green") if right else ("✗", "red")
    return Text(f"{mark} {_cut(answer)}", style=style)


def _cut(answer: str) -> str:
    line = " ".join(answer.split())
    return line if len(line) <= _CHARACTERS else line[:_CHARACTERS].rpartition(" ")[0] + " …"


def _beside(left: Text, right: Text, style: str = "") -> Table:
    grid = Table.grid(expand=True, padding=(0, 2, 0, 0))
    grid.add_column(ratio=1, style=style)
    grid.add_column(ratio=1, style=style)
    grid.add_row(left, right)
    return grid


def _width(out: Console) -> int:
    return min(out.width, _WIDTH)
