"""A learned writer of SmolLM2: questions about one passage that was compressed into fewer slots than it has tokens.

    remanence train smollm2_writer --output runs/writer -- base=path/to/smollm2 data=path/to/questions
    python benchmarks/real/compressed.py --model runs/writer/model --data dev-v1.1.json --json compressed.json

The questions are those of `remanence eval squad`, in its order. Each ratio cuts passages into chunks of so many tokens
a slot. `nothing` is asked without the passage.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from remanence import MemoryModel
from remanence.environment import run_stamp
from remanence.evaluation.asking import ANSWER_TOKENS, hit
from remanence.evaluation.intervals import wilson
from remanence.evaluation.squad import Asked, read_questions


def ask(model: MemoryModel, passage: str, question: str) -> str:
    memory = model.new_memory()
    if passage:
        model.write(memory, passage)
    asked: Any = [{"role": "user", "content": question}]
    return str(model.generate(memory, asked, max_new_tokens=ANSWER_TOKENS, do_sample=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--ratios", default="2,4")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    model = MemoryModel.from_pretrained(given.model)
    questions = read_questions(given.data, model.tokenizer)
    asked: list[Asked] = questions.asked[: given.count]
    figures: dict[str, Any] = {}

    def measure(name: str, *, told: bool) -> None:
        hits = [hit(ask(model, questions.passages[one.passage] if told else "", one.text), one.truths) for one in asked]
        figures[name] = {"hit": sum(hits) / len(hits), "interval": wilson(sum(hits), len(hits))}
        print(name, figures[name], flush=True)

    measure("nothing", told=False)
    for ratio in map(int, given.ratios.split(",")):
        model.config = model.config.replace(chunk=ratio * model.slots_per_write)
        measure(f"{ratio} tokens a slot", told=True)
    state = given.model / "trainer_state.json"  # of a checkpoint in the middle of training
    log = json.loads((state if state.exists() else given.model / "training_log.json").read_text(encoding="utf-8"))
    curve = log.get("log_history") or log["log"]
    command = f"python benchmarks/real/compressed.py --data {given.data.name} --count {given.count}"
    made = {"n": len(asked), "ratios": figures, **run_stamp(command, model.device), "training": curve}
    given.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
