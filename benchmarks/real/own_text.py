"""Twenty questions about a text of one's own that is told paragraph by paragraph: sources and answers.

    python benchmarks/real/own_text.py notes --json benchmarks/real/notes.json
    python benchmarks/real/own_text.py chapter --novel Bennet_Babylon_1902.txt --json benchmarks/real/chapter.json

The novel is of 100 English Novels (public domain); its text is not part of this project.
"""

import argparse
import json
import re
from pathlib import Path

from remanence import MemoryModel
from remanence.environment import run_stamp
from remanence.evaluation.asking import hit
from remanence.evaluation.intervals import wilson
from remanence.texts import paragraphs_of

QUESTIONS = Path(__file__).parent / "questions"


def first_chapter(novel: Path) -> list[str]:
    """Its paragraphs, the title the first."""
    text = novel.read_text(encoding="utf-8")
    first, second = [found.start() for found in re.finditer(r"(?m)^Chapter ", text)][:2]
    return paragraphs_of(text[first:second])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", choices=sorted(file.stem for file in QUESTIONS.glob("*.json")))
    parser.add_argument("--novel", type=Path, help="the file whose first chapter is told, for chapter")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model = MemoryModel.from_pretrained(given.model).optimize_for_cpu()
    held = json.loads((QUESTIONS / f"{given.text}.json").read_text(encoding="utf-8"))
    memory, texts = model.new_memory(), held.get("paragraphs") or first_chapter(given.novel)
    places = {model.write(memory, text).id: place for place, text in enumerate(texts)}
    records = []
    for one in held["questions"]:
        answer = model.ask(memory, one["question"], max_new_tokens=16)
        read = [places[write] for write, _ in answer.sources]
        right = {"source": bool(set(read) & set(one["paragraphs"])), "hit": hit(answer.text, one["truths"])}
        records.append({"question": one["question"], "said": answer.text, "read": read, "found": answer.found, **right})
        print(f"{'+' if right['hit'] else '-'} {one['question']} {answer.text} {read}")
    counts = {name: sum(record[name] for record in records) for name in ("source", "hit", "found")}
    made = {name: {"count": count, "interval": wilson(count, len(records))} for name, count in counts.items()}
    print(counts)
    if given.json:
        novel = "" if given.novel is None else f" --novel {given.novel.name}"
        command = f"python benchmarks/real/own_text.py {given.text}{novel}"
        about = {"n": len(records), **made, "records": records, **run_stamp(command, model.device)}
        given.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
