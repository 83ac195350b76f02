"""Twenty questions about a text of one's own that is told paragraph by paragraph: sources and answers.

    python benchmarks/run.py own_text --text notes
    python benchmarks/run.py own_text --text chapter --novel Bennet_Babylon_1902.txt

The novel is of 100 English Novels (public domain); its text is not part of this project.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from remanence import MemoryModel
from remanence.evaluation.asking import hit
from remanence.evaluation.columns import Column, column_of
from remanence.evaluation.harness import Evaluation, Item, Record
from remanence.evaluation.metrics import Metric
from remanence.evaluation.told import Told
from remanence.texts import paragraphs_of

KEEP_RECORDS = True
METRICS = [Metric(name, "rate") for name in ("source", "hit", "found")]


@dataclass(frozen=True)
class Settings:
    text: Literal["notes", "chapter"] = "notes"
    novel: Path | None = field(default=None, metadata={"help": "the file whose first chapter is told, for chapter"})
    model: str = "smollm2"


def evaluation(on: Settings) -> tuple[MemoryModel, Evaluation]:
    model = MemoryModel.from_pretrained(on.model).optimize_for_cpu()
    file = Path(__file__).parent / "questions" / f"{on.text}.json"
    held = json.loads(file.read_text(encoding="utf-8"))
    if (texts := held.get("paragraphs")) is None:
        if on.novel is None:
            raise SystemExit("name the file with the chapter: --novel")
        texts = first_chapter(on.novel)
    told = Told(model, texts)

    def ask(column: Column, items: Sequence[Item]) -> list[Record]:
        return [answered(item.content) for item in items]

    def answered(one: Record) -> Record:
        answer = model.ask(told.memory, one["question"], max_new_tokens=16)
        read = [told.writes.index(write) for write, _ in answer.sources]
        right = {"source": bool(set(read) & set(one["paragraphs"])), "hit": hit(answer.text, one["truths"])}
        return {"question": one["question"], "said": answer.text, "read": read, "found": answer.found, **right}

    items = [Item(str(number), (on.text,), content=one) for number, one in enumerate(held["questions"])]
    return model, Evaluation("own_text", {"text": on.text}, items, [column_of("slots")], ask, METRICS)


def first_chapter(novel: Path) -> list[str]:
    """Its paragraphs, the title the first."""
    text = novel.read_text(encoding="utf-8")
    first, second = [found.start() for found in re.finditer(r"(?m)^Chapter ", text)][:2]
    return paragraphs_of(text[first:second])
