"""200 greedy answers of the bundled checkpoints, as they were recorded, right or wrong: a rebuilt model gives the same.

`python -m tests.golden.test_answers` records them anew, which only a change of the checkpoints is a reason for.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from remanence import Memory, MemoryModel
from remanence.checkpoints import bundled
from remanence.data.biographies import ATTRIBUTES, biography, question, sample_person
from remanence.data.prose import paragraphs

RECORDED = Path(__file__).with_name("answers.json")
WRITES = {"tiny": 32, "tiny_longterm": 80}  # into each memory; the pool holds the slots of 16
SEEDS = (0, 1)
ANSWERS = 50  # of each memory
TOKENS = 8
GAP = 0.01  # between the two best logits of every token: less may turn round on another processor


def written(model: MemoryModel, seed: int, texts: list[str]) -> Memory:
    memory = model.new_memory(seed=seed)
    for text in texts:
        model.write(memory, text)
    return memory


@pytest.mark.parametrize("name", WRITES)
def test_generate_gives_the_recorded_answers(name: str) -> None:
    model = MemoryModel.from_pretrained(bundled(name))
    for recorded in json.loads(RECORDED.read_text())[name]:
        memory = written(model, recorded["seed"], recorded["texts"])
        asked = recorded["answers"]
        assert len(asked) == ANSWERS
        given = {text: model.generate(memory, text, max_new_tokens=TOKENS, do_sample=False) for text in asked}
        assert given == asked


def telling(rng: random.Random, writes: int) -> tuple[list[str], list[str]]:
    """Texts, of which two in three tell of a person and one is longer than a chunk, and questions about the people."""
    people = [sample_person(rng, "test") for _ in range(writes)]
    texts, questions = [], []
    for index, person in enumerate(people):
        if index == writes // 2:
            texts.append("\n".join(rng.sample(paragraphs(), 8)))
        elif index % 3 == 2:
            texts.append(rng.choice(paragraphs()))
        else:
            told = rng.sample(ATTRIBUTES, 3)
            texts.append(biography(person, rng, told))
            questions += [question(person, attribute, rng) for attribute in told]
    rng.shuffle(questions)
    return texts, questions


def sure(model: MemoryModel, memory: Memory, text: str) -> bool:
    """Whether no token of the answer is nearly another one."""
    ids = torch.tensor(model.tokenizer(text)["input_ids"])
    options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    logits = torch.cat(model.generate(memory, ids, max_new_tokens=TOKENS, **options).logits)  # [TOKENS, V]
    best = logits.topk(2).values
    return bool((best[:, 0] - best[:, 1] > GAP).all())


def record(name: str, seed: int) -> dict[str, Any]:
    model = MemoryModel.from_pretrained(bundled(name))
    texts, questions = telling(random.Random(f"{name}/{seed}"), WRITES[name])
    memory = written(model, seed, texts)
    kept = [text for text in questions if sure(model, memory, text)][:ANSWERS]
    answers = {text: model.generate(memory, text, max_new_tokens=TOKENS, do_sample=False) for text in kept}
    return {"seed": seed, "texts": texts, "answers": answers}


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = {name: [record(name, seed) for seed in SEEDS] for name in WRITES}
    RECORDED.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
