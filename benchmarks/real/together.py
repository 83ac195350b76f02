"""Four passages read together, put together in other ways: what each gives.

    python benchmarks/real/together.py --data dev-v1.1.json --count 100 --json benchmarks/real/together.json

plain          each passage encoded behind the head alone, oldest first: what is built in
by score       the best passage next to the question
cooler 0.9     keys of the passages divided by 0.9, which sharpens attention to them, and by 0.8 (APE, arXiv 2502.05431,
               without its scale)
15 % again     of the tokens, those whose keys and values would differ most behind all passages before them, as they
               would be there (CacheBlend, arXiv 2405.16444; its own selection is cheaper)
all again      every passage encoded behind all before it: one long text
other system   a system message of the user's own in front of the question, where passages stand behind the default one
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remanence import MemoryModel
from remanence.environment import run_stamp
from remanence.evaluation.asking import hit
from remanence.evaluation.columns import reading_all
from remanence.evaluation.intervals import wilson
from remanence.evaluation.squad import among_others, read_questions
from remanence.model.text import TextWriter

Slots = Callable[[Any, Sequence[Any]], list[Tensor]]
SYSTEM = "You are a careful clerk at the front desk of a small hotel. Answer briefly."
AGAIN = 0.15


def cooler(slots: Slots, temperature: float) -> Slots:
    def made(memory: Any, chunks: Sequence[Any]) -> list[Tensor]:
        scale = torch.tensor([1 / temperature, 1.0])[:, None, None, None, None]
        return [one * scale.to(one.dtype) for one in slots(memory, chunks)]

    return made


def again(writer: TextWriter, slots: Slots, share: float) -> Slots:
    """Tokens as they are behind the passages before them: a share of each passage, those that differ most."""

    def made(memory: Any, chunks: Sequence[Any]) -> list[Tensor]:
        before = list(writer.head_of(memory))
        found = []
        for chunk, alone in zip(chunks, slots(memory, chunks), strict=True):
            whole = writer.encode([(before, chunk.ids)])[0].slots
            off = (whole - alone).float().square().sum((0, 1, 3, 4))  # [n]
            count = max(1, round(share * len(off)))
            picked = torch.zeros(len(off), dtype=torch.bool).index_fill(0, off.topk(count).indices, True)
            found.append(torch.where(picked[None, None, :, None, None], whole, alone))
            before += chunk.ids.tolist()
        return found

    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    model = MemoryModel.from_pretrained(given.model).optimize_for_cpu()
    writer: Any = model.writer
    plain = writer.slots
    ways: dict[str, Slots] = {
        "plain": plain,
        "by score": plain,
        "cooler 0.9": cooler(plain, 0.9),
        "cooler 0.8": cooler(plain, 0.8),
        "15 % again": again(writer, plain, AGAIN),
        "all again": again(writer, plain, 1.0),
        "other system": plain,
    }
    questions = read_questions(given.data, model.tokenizer)
    hits: dict[str, list[bool]] = {name: [] for name in ways}
    for number, one in enumerate(questions.asked[: given.count]):
        told, _ = among_others(questions, one, 4)
        memory = model.new_memory()
        for passage in told:
            model.write(memory, passage)
        sorted_ = model.new_memory()  # what is read stands in the order in which it was written
        ranked = [write for write, _ in model.search(memory, one.text, k=4)]
        for write in reversed(ranked):
            model.write(sorted_, told[[r.id for r in memory.writes].index(write)])
        for name, slots in ways.items():
            writer.slots = slots
            user = [{"role": "user", "content": one.text}]
            asked = [{"role": "system", "content": SYSTEM}, *user] if name == "other system" else user
            with reading_all(model):
                answer = model.ask(sorted_ if name == "by score" else memory, asked, max_new_tokens=12)
            hits[name].append(hit(answer.text, one.truths))
        writer.slots = plain
        if number % 10 == 9:
            print(number + 1, {name: sum(right) for name, right in hits.items()}, flush=True)
    made = {
        name: {"hit": sum(right) / len(right), "interval": wilson(sum(right), len(right))}
        for name, right in hits.items()
    }
    about = {"n": len(hits["plain"]), "ways": made}
    command = f"python benchmarks/real/together.py --data {given.data.name} --count {given.count} --model {given.model}"
    made_by = run_stamp(command, model.device)
    given.json.write_text(json.dumps({**about, **made_by}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
