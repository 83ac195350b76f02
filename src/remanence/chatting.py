"""The loop in which a memory is asked and told, line by line."""

import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from remanence.conversation import Conversation
from remanence.details import details_table, file_sizes, writes_of, writes_table
from remanence.errors import RemanenceError
from remanence.memory import Memory
from remanence.memory.envelope import read_envelope
from remanence.model.model import MemoryModel

_ROWS = 8  # of the table of writes
_WELCOME = "Type a question, or /tell TEXT; /help lists what else there is. /quit, Ctrl-D and Ctrl-C save and leave."
_HELP = {
    "/tell TEXT": "write a text into the memory",
    "/sources": "the writes that the last answer was read from",
    "/why": "the same, with their scores and texts",
    "/forget ID": "take a write out of the memory",
    "/undo": "take back the last /tell",
    "/show": "what is in the memory",
    "/save": "save the memory now",
    "/help": "this",
    "/quit": "save and leave, as Ctrl-D and Ctrl-C do",
}


def chat_loop(out: Console, model: MemoryModel, memory: Memory, path: Path) -> None:
    """Read lines until /quit, Ctrl-D or Ctrl-C; whatever was changed is then saved, and where is said."""
    out.print(_WELCOME, markup=False, highlight=False)
    talk = Conversation(model, memory)
    try:
        while True:
            command, rest = _command(read_line(out, "> "))
            if command == "/quit":
                break
            _respond(out, talk, path, command, rest)
    except (EOFError, KeyboardInterrupt):
        out.print()
    if not talk.changed:
        out.print("nothing new to save")
        return
    try:
        _save(out, memory, path)
    except RemanenceError as error:
        _complain(out, error)
        _save(out, memory, Path(tempfile.mkdtemp(prefix="remanence-")) / path.name)


def read_line(out: Console, prompt: str) -> str:
    """A line of input.

    Raises:
        EOFError: there is no more, or what comes is no text.
    """
    try:
        return out.input(prompt)
    except UnicodeDecodeError as error:
        out.print(f"error: standard input is not text in {error.encoding}, so it is not read on", markup=False)
        raise EOFError from error


def _command(line: str) -> tuple[str, str]:
    line = line.strip()
    command, _, rest = line.partition(" ") if line.startswith("/") else ("/ask", "", line)
    return {"/write": "/tell"}.get(command, command), rest.strip()


def _respond(out: Console, talk: Conversation, path: Path, command: str, rest: str) -> None:
    try:
        if command == "/ask":
            _answer(out, talk, rest)
        elif command == "/tell":
            _tell(out, talk, rest)
        elif command in ("/sources", "/why"):
            _explain(out, talk, texts=command == "/why")
        elif command == "/forget":
            _forget(out, talk, rest)
        elif command == "/undo":
            out.print(f"forgotten: write {talk.undo().id}", highlight=False)
        elif command == "/show":
            _show(out, talk, path)
        elif command == "/save":
            _save(out, talk.memory, path)
            talk.changed = False
        elif command == "/help":
            for name, what in _HELP.items():
                out.print(f"  {name:<11}  {what}", markup=False, highlight=False)
        else:
            out.print(f"there is no {command}; /help lists what there is", markup=False, highlight=False)
    except RemanenceError as error:
        _complain(out, error)


def _answer(out: Console, talk: Conversation, question: str) -> None:
    """Print an answer word by word, and below it where it is from."""
    if not question:
        return

    def show(words: str) -> None:
        out.print(words, end="", markup=False, highlight=False, soft_wrap=True)

    try:
        answer = talk.ask(question, show)
    finally:
        out.print()
    if talk.memory.chunks is None:
        return  # a pool is read as a whole
    if not talk.read:
        out.print("Nothing in the memory was read for this: these are the model's own words.", style="dim")
    elif not answer.found:
        out.print("The memory was not told this.", style="dim")
    else:
        places: dict[str, str] = {}
        for one in talk.read:
            source = one.get("source") or "write"
            places[source] = f"{places.get(source, source)} [{one['id']}]"
        out.print(f"from {', '.join(places.values())}", style="dim", markup=False, highlight=False)


def _tell(out: Console, talk: Conversation, text: str) -> None:
    if not text:
        out.print("write what to tell behind it: /tell TEXT", markup=False, highlight=False)
        return
    receipt = talk.tell(text)
    out.print(f"written: {receipt.tokens} tokens, write {receipt.id}", markup=False, highlight=False)


def _explain(out: Console, talk: Conversation, *, texts: bool) -> None:
    """What the last answer was read from: a table, or each text whole."""
    if talk.read is None:
        out.print("nothing was asked yet")
    elif not talk.read:
        whole = talk.memory.chunks is None and talk.memory.written
        out.print("a pool is read as a whole, so no write is named" if whole else "nothing was read for it")
    elif not texts:
        out.print(writes_table(talk.read))
    else:
        for one in talk.read:
            about = f"[{one['id']}] score {one['score']:.2f}, {one.get('source') or 'no source'}"
            out.print(about, style="dim", markup=False, highlight=False)
            out.print(Text(one.get("text") or "its text is not kept"))


def _forget(out: Console, talk: Conversation, write: str) -> None:
    if not write.isdecimal():
        out.print("name a write by its number, as /sources and /show list it: /forget ID", highlight=False)
        return
    receipt = talk.forget(int(write))
    out.print(f"forgotten: write {receipt.id}, {receipt.tokens} tokens", highlight=False)


def _show(out: Console, talk: Conversation, path: Path) -> None:
    memory, about = talk.memory, talk.model.inspect(talk.memory)
    saved = file_sizes(path, read_envelope(path)) if path.is_file() else {"file": f"{path}, not saved yet"}
    out.print(details_table({**saved, "model_name": memory.model_name, **about, "write_count": about["writes"]}))
    if memory.writes:
        out.print(writes_table(writes_of(memory.writes), newest=_ROWS))


def _save(out: Console, memory: Memory, path: Path) -> None:
    """Save, and begin again where Ctrl-C cut it short: who leaves in a hurry means to keep what was told."""
    try:
        memory.save(path)
    except KeyboardInterrupt:
        out.print("saving first")
        memory.save(path)
    out.print(f"saved to {path}", markup=False)


def _complain(out: Console, error: RemanenceError) -> None:
    line = " ".join(str(error).split())
    out.print(f"error: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
