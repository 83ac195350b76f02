"""The bundled demonstration: biographies of held-out people, one per line, and questions about them.

`python -m remanence.data.demo` makes the two files anew.
"""

import json
import random
from importlib import resources
from pathlib import Path

from remanence.data.biographies import ATTRIBUTES, biography, question, sample_person
from remanence.data.episodes import FACTS

PEOPLE = 8
SEED = 20


def demo_files() -> tuple[Path, Path]:
    """The text, and the JSON list of questions (`question`, `truth`, `person`)."""
    folder = Path(str(resources.files("remanence.data")))
    return folder / "demo.txt", folder / "demo_questions.json"


def make(seed: int = SEED) -> tuple[list[str], list[dict[str, str]]]:
    """Paragraphs and questions, one question per fact."""
    rng = random.Random(seed)
    texts, questions = [], []
    for _ in range(PEOPLE):
        person = sample_person(rng, "test")
        attributes = rng.sample(ATTRIBUTES, FACTS)
        texts.append(biography(person, rng, attributes))
        questions += [
            {
                "question": _bare(question(person, attribute, rng)),
                "truth": person.facts[attribute],
                "person": person.name,
            }
            for attribute in attributes
        ]
    return texts, questions


def _bare(prompt: str) -> str:
    return prompt.removeprefix("Question: ").removesuffix(" Answer:")


if __name__ == "__main__":
    text_file, questions_file = demo_files()
    texts, questions = make()
    text_file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    questions_file.write_text(json.dumps(questions, indent=1) + "\n", encoding="utf-8")
