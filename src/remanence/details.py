"""What a memory's file says, its tensors unread: sizes, where they lie, and the table of writes. Imports no torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from remanence.checkpoints import name_of
from remanence.config import StorageConfig
from remanence.memory.envelope import Envelope, folder_of
from remanence.memory.spec import MemorySpec
from remanence.memory.state import ChunkHeader
from remanence.memory.writes import WriteRecord

if TYPE_CHECKING:
    from remanence.model.model import MemoryModel

_WORDS = 60  # characters of a text
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_LABELS = {
    "file": "file",
    "file_bytes": "bytes on disk",
    "missing": "missing files",
    "writer": "writer",
    "model_name": "model",
    "model": "weights (fingerprint)",
    "dtype": "dtype",
    "layers": "layers (L)",
    "slots": "slots per layer (N)",
    "slots_per_write": "slots per write (K)",
    "chunks": "chunks",
    "tokens": "tokens",
    "capacity": "most slots",
    "longterm": "long-term slots, layer by layer",
    "longterm_capacity": "long-term capacity per layer (M)",
    "retrieved": "retrieved per layer (K0)",
    "tier": "tier",
    "bytes": "bytes",
    "write_count": "writes",
}


def file_details(path: Path, envelope: Envelope) -> dict[str, Any]:
    """Everything about a memory in a file, as JSON has it."""
    header = envelope.header
    spec, chunks, longterm = header.spec, header.chunks, header.longterm
    about = file_sizes(path, envelope) | {"writer": spec.writer, "model_name": header.model_name, "model": spec.model}
    if name := name_of(header.model_name):
        about["checkpoint"] = name
    about |= {"dtype": spec.dtype, "layers": spec.layers}
    if chunks is not None:
        about |= {"chunks": len(chunks.items), "tokens": sum(item.tokens for item in chunks.items)}
        about |= {} if chunks.capacity is None else {"capacity": chunks.capacity}
    else:
        about |= {"slots": spec.slots, "slots_per_write": spec.slots_per_write}
    if longterm is not None:
        about |= {
            "longterm": [layer.count - layer.start for layer in longterm.layers],
            "longterm_capacity": longterm.rules.capacity,
            "retrieved": longterm.rules.retrieved,
        }
    kept = chunks or longterm
    about |= {"tier": "device", "int8": False} if kept is None else _storage(kept.storage)
    writes = writes_of(header.writes, () if chunks is None else chunks.items)
    return about | {"bytes": bytes_by_tier(envelope), "write_count": header.write_count, "writes": writes}


def file_sizes(path: Path, envelope: Envelope) -> dict[str, Any]:
    """Bytes of a memory's file and of those beside it, and which of them are missing."""
    beside = [folder_of(path) / block.file for block in envelope.blocks.values()]
    there = [file for file in beside if file.is_file()]
    about: dict[str, Any] = {"file": str(path), "file_bytes": sum(file.stat().st_size for file in (path, *there))}
    if len(there) < len(beside):
        about["missing"] = [str(file) for file in beside if file not in there]
    return about


def _storage(storage: StorageConfig) -> dict[str, Any]:
    return {"tier": storage.tier, "int8": bool(storage.int8)}


def writes_of(records: Iterable[WriteRecord], chunks: Iterable[ChunkHeader] = ()) -> list[dict[str, Any]]:
    """The table of writes, oldest first; in a file, the `chunks` of a text memory have the texts."""
    texts: dict[int, list[str]] = {}
    for chunk in chunks:
        if chunk.text is not None:
            texts.setdefault(chunk.write, []).append(chunk.text)
    return [_write(record, texts.get(record.id)) for record in records]


def _write(record: WriteRecord, texts: Sequence[str] | None) -> dict[str, Any]:
    text = "".join(texts) if record.text is None and texts else record.text
    return {
        "id": record.id,
        "time": None if record.time is None else record.time.isoformat(timespec="seconds"),
        "source": record.source,
        "tokens": record.tokens,
        "metadata": dict(record.metadata),
        "text": text,
    }


def ranked(records: Iterable[WriteRecord], scores: Iterable[tuple[int, float]]) -> list[dict[str, Any]]:
    """Writes that were found, best first, each with its score."""
    by_id = {one["id"]: one for one in writes_of(records)}
    return [{"id": id, "score": round(score, 4), **by_id.get(id, {})} for id, score in scores]


def bytes_by_tier(envelope: Envelope) -> dict[str, int]:
    """`Memory.nbytes` of the memory, once it is loaded."""
    header, spec = envelope.header, envelope.header.spec
    sizes = {name: piece.end - piece.start for name, piece in envelope.pieces.items()}
    kept = header.chunks or header.longterm
    numbers = 2 * spec.kv_heads * spec.head_dim
    slot = numbers + 8 if kept is not None and kept.storage.int8 else numbers * _BYTES[spec.dtype]
    if header.chunks is not None:
        items = header.chunks.items
        texts = sum(len(item.text.encode()) for item in items if item.text is not None)
        held = {"text": texts + sum(size for name, size in sizes.items() if name.startswith("chunks."))}
        if header.chunks.storage.tier != "text":
            held[header.chunks.storage.tier] = spec.layers * slot * sum(item.tokens for item in items)
        return held
    held = {"device": sum(size for name, size in sizes.items() if name == "newest" or name.startswith("pool."))}
    if header.longterm is not None:
        count = sum(layer.count - layer.start for layer in header.longterm.layers)
        held["device"] += count * spec.retrieval_size * _BYTES[spec.dtype]
        tier = header.longterm.storage.tier
        held[tier] = held.get(tier, 0) + count * slot
    return held


def reading_details(spec: MemorySpec, model: "MemoryModel") -> dict[str, Any]:
    """Whether a model can read a memory of this kind; else in what they differ."""
    own = model.spec
    differing = own.differing(spec)
    about = {"asked": model.name, "trained": model.trained, "readable": not differing}
    return about | ({"differs": differing} if differing else {})


def details_table(details: Mapping[str, Any]) -> Table:
    """One row for each figure, but for the writes."""
    table = Table(show_header=False)
    for name, label in _LABELS.items():
        if name == "bytes":
            for tier, count in details[name].items():
                table.add_row(f"bytes, {tier}", f"{count:,}")
        elif name in details:
            table.add_row(label, Text(_shown(name, details), overflow="fold"))
    if "asked" in details:
        answer = Text("yes", style="green")
        if not details["readable"]:
            answer = Text(f"no, it differs in: {', '.join(details['differs'])}", style="red")
        table.add_row(Text(f"readable by {details['asked']}"), answer)
        if not details["trained"]:
            table.add_row("its writer", Text("never trained: what it writes cannot be recalled", style="red"))
    return table


def _shown(name: str, details: Mapping[str, Any]) -> str:
    value = details[name]
    if name == "model_name":
        checkpoint = details.get("checkpoint")
        return f"{checkpoint}, which is bundled: --model {checkpoint}" if checkpoint else value or "not known"
    if name == "tier" and details.get("int8"):
        return f"{value}, int8"
    if isinstance(value, list):
        return " ".join(f"{one:,}" if isinstance(one, int) else str(one) for one in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def writes_table(writes: Sequence[Mapping[str, Any]], *, newest: int | None = None) -> Table:
    """Writes in their order, each on a line; `newest`: so many of them at most."""
    shown = writes if newest is None else writes[-newest:]
    title = (
        f"the newest {len(shown)} of {len(writes):,} writes; remanence show --all lists all"
        if len(shown) < len(writes)
        else None
    )
    table = Table(title=title, title_justify="left")
    columns = {name: [cell(one) for one in shown] for name, cell in _CELLS.items()}
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    for name in filled:
        table.add_column(name, justify="right" if name in ("id", "score", "tokens") else "left")
    for row in zip(*filled.values(), strict=True):
        table.add_row(*map(Text, row))
    return table


def first_words(text: str | None) -> str:
    """As much of a text as fits on a line."""
    line = " ".join((text or "").split())
    return line if len(line) <= _WORDS else line[:_WORDS].rpartition(" ")[0] + " …"


_CELLS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "id": lambda one: str(one["id"]),
    "score": lambda one: f"{one['score']:.2f}" if "score" in one else "",
    "time (UTC)": lambda one: (one.get("time") or "")[:19].replace("T", " "),
    "source": lambda one: one.get("source") or "",
    "tokens": lambda one: f"{one.get('tokens', 0):,}",
    "text": lambda one: first_words(one.get("text")),
}
