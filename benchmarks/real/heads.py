"""Where there is no chat template: how likely an answer is behind each kind of head.

    python benchmarks/real/heads.py --data dev-v1.1.json --count 100 --json benchmarks/real/heads.json

Four passages are told, one of which holds the answer, each encoded behind

no head        nothing
EOS head       the token that ends a text
chat head      the default system message, as in conversations

and the question is asked in text, of the model alone, without a reader. As text: the four stand in front of the
question.
Given is the mean negative log-probability of the shortest answer's tokens, with the interval that holds 95 %.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from remanence import MemoryModel
from remanence.environment import run_stamp
from remanence.evaluation.columns import only, reading_all
from remanence.evaluation.metrics import Metric
from remanence.evaluation.scoring import score_tokens
from remanence.evaluation.squad import among_others, read_questions


def loss(model: MemoryModel, passages: Sequence[str], text: str, answer: str, head: Sequence[int] | None) -> float:
    """Of the answer's tokens, behind a memory of the passages."""
    memory = model.new_memory(head=head)
    encode = model.tokenizer
    with only(model, ()), reading_all(model):
        for passage in passages:
            model.write(memory, passage)
        pair = [encode(part, add_special_tokens=False)["input_ids"] for part in (text, f" {answer}")]
        (scored,), _ = score_tokens(model, memory, [(pair[0], pair[1])])
    return -sum(scored.likelihoods) / len(scored.likelihoods)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    model = MemoryModel.from_pretrained(given.model).optimize_for_cpu()
    heads = {"no head": (), "EOS head": (model.tokenizer.eos_token_id,), "chat head": None}
    questions = read_questions(given.data, model.tokenizer)
    losses: dict[str, list[float]] = {name: [] for name in (*heads, "nothing", "as text")}
    for one in questions.asked[: given.count]:
        told, _ = among_others(questions, one, 4)
        prompt, answer = f"Question: {one.text}\nAnswer:", min(one.truths, key=len)
        for name, head in heads.items():
            losses[name].append(loss(model, told, prompt, answer, head))
        losses["nothing"].append(loss(model, (), prompt, answer, None))
        losses["as text"].append(loss(model, (), "\n".join([*told, prompt]), answer, None))
    metric = Metric("loss", "mean")
    made = {name: metric.figure(found) for name, found in losses.items()}
    command = f"python benchmarks/real/heads.py --data {given.data.name} --count {given.count} --model {given.model}"
    about = {"n": len(losses["nothing"]), "heads": made, **run_stamp(command, model.device)}
    given.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
