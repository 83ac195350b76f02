"""What a write costs in a memory of few writes and of many, and what the first question after a write costs.

Three memories of the bundled checkpoint's decoder: a pool, a pool with long-term memory, and text slots. Each turn
writes into the small one and into the large one, then asks the large one twice: the first question builds its prefix.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from rich.progress import track

from remanence import Memory, MemoryModel
from remanence.checkpoints import bundled
from tables import Figures, Rows, cell
from timing import Cases, Part, Parts, ratio, require

QUESTION = "Question: Where was Alice Brown born? Answer:"
AFTER, AGAIN = "question after a write", "the same again"  # columns


@dataclass(frozen=True)
class Settings:
    few: int = field(default=100, metadata={"help": "writes in the small memory"})
    many: int = field(default=9_900, metadata={"help": "writes in the large memory"})
    repeats: int = 100
    threads: int = 1


def text() -> MemoryModel:
    """Text slots on the same decoder; whatever a chunk scores, the best are read."""
    base = MemoryModel.from_pretrained(bundled("tiny"))
    return MemoryModel.attach(base.detach(), base.tokenizer, min_score=None)


def parts(on: Settings) -> Parts:
    learned = {"pool": "tiny", "longterm": "tiny_longterm"}
    kinds: dict[str, Callable[[], MemoryModel]] = {
        kind: partial(MemoryModel.from_pretrained, bundled(name)) for kind, name in learned.items()
    }
    return {kind: partial(writing, on, kind, make) for kind, make in {**kinds, "text": text}.items()}


def finish(on: Settings, rows: Rows) -> None:
    for cells in rows.values():
        first, late, after, again = (cells[column]["median"] for column in (*columns(on), AFTER, AGAIN))
        cells |= {"late / early": ratio(late, first), "question / again": ratio(after, again)}


def columns(on: Settings) -> list[str]:
    return [f"write {count:,} to {count + on.repeats:,}" for count in (on.few, on.many)]


def writing(on: Settings, kind: str, make: Callable[[], MemoryModel]) -> Part:
    model = make().optimize_for_cpu()
    memories = [told(model, count) for count in (on.few, on.many)]
    large = memories[1]

    def ask() -> str:
        return str(model.generate(large, QUESTION, max_new_tokens=1, do_sample=False))

    def gate() -> Figures:
        tell(model, large)
        require(ask() == ask(), "a prefix that was kept gives another answer than one that is made")
        return {}

    named = zip(columns(on), memories, strict=True)
    cases: Cases = {((kind,), column): partial(tell, model, memory) for column, memory in named}
    cases |= {((kind,), AFTER): ask, ((kind,), AGAIN): ask}
    return Part(cases, on.repeats, gate, {kind: {"held": cell(sum(large.nbytes.values()), "bytes")}})


def told(model: MemoryModel, count: int) -> Memory:
    memory = model.new_memory(seed=0)
    for _ in track(range(count), f"{count:,} writes"):
        tell(model, memory)
    return memory


def tell(model: MemoryModel, memory: Memory) -> None:
    number = memory.next_id
    model.write(memory, f"Note {number}: Alice Brown was born in Oslo, and works as a surveyor in town {number % 97}.")
