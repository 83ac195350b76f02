"""Small files in the formats of question sets, invented, and a model to ask them."""

import json
from pathlib import Path
from typing import Any

from remanence import MemoryModel
from remanence.evaluation.columns import columns_of
from remanence.evaluation.harness import Evaluation
from tests.support.tiny import decoder, tokenizer

NAMES = ("Ada", "Bert", "Cleo", "Dora", "Emil", "Fina")
TOWNS = ("Oslo", "Lima", "Rome", "Bonn", "Kiev", "Bern")


def model() -> MemoryModel:
    """Text slots on a random decoder, whose answers mean nothing."""
    hf = decoder(vocab_size=300, num_hidden_layers=2, max_position_embeddings=1000)
    return MemoryModel.attach(hf, tokenizer())


def evaluation(module: Any, model: MemoryModel, columns: str, **options: Any) -> Evaluation:
    """An evaluation as its command makes it."""
    made: Evaluation = module.evaluation(model, columns_of(model, columns, module.COMMAND.shows), **options)
    return made


def passage(number: int) -> str:
    return f"{NAMES[number]} was born in {TOWNS[number]}, and keeps bees near the harbour."


def squad_file(folder: Path, passages: int = len(NAMES)) -> Path:
    """A passage in each article, with a short answer and one that is too long."""
    articles = []
    for number in range(passages):
        short = {"question": f"Where was {NAMES[number]} born?", "answers": [{"text": TOWNS[number]}], "id": "s"}
        long = {"question": "What?", "answers": [{"text": passage(number)}], "id": "l"}
        paragraphs = [{"context": passage(number), "qas": [short, long]}]
        articles.append({"title": NAMES[number], "paragraphs": paragraphs})
    return _written(folder / "squad.json", {"version": "1.1", "data": articles})


def natural_file(folder: Path) -> Path:
    lines = []
    for number, name in enumerate(NAMES):
        gold = {"title": name, "long_answer": passage(number)}
        record = {"question": f"where was {name} born", "answers": [TOWNS[number]], "nq_annotated_gold": gold}
        lines.append(json.dumps(record))
    file = folder / "nq.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def locomo_file(folder: Path, name: str = "7.json") -> Path:
    """Two sessions, the later one first in the file; a question of each kind."""
    questions: list[dict[str, Any]] = [
        {"question": "Where does Ada live?", "answer": "Oslo", "evidence": ["D1:1"], "category": 4},
        {"question": "When did Bert move?", "answer": 2022, "evidence": ["D2:2"], "category": 2},
        {"question": "What do they like?", "answer": "bees, boats", "evidence": ["D1:2; D2:1"], "category": 1},
        {"question": "Would Ada sail?", "answer": "yes; she likes it", "evidence": [], "category": 3},
        {"question": "What is Bert's dog called?", "adversarial_answer": "Rex", "evidence": ["D1:1"], "category": 5},
    ]
    content = {
        "speaker_a": "Ada",
        "speaker_b": "Bert",
        "session_2_date_time": "9:10 am on 3 March, 2023",
        "session_2": [
            {"speaker": "Ada", "dia_id": "D2:1", "text": "I like boats.", "blip_caption": "a photo of a boat"},
            {"speaker": "Bert", "dia_id": "D2:2", "text": "I moved last year."},
        ],
        "session_1_date_time": "1:56 pm on 8 May, 2022",
        "session_1": [
            {"speaker": "Ada", "dia_id": "D1:1", "text": "I live in Oslo now."},
            {"speaker": "Bert", "dia_id": "D1:2", "text": "I keep bees."},
        ],
        "events_session_1": {"Ada": []},
        "qa": questions,
    }
    return _written(folder / name, content)


def longmemeval_file(folder: Path) -> Path:
    """Sessions that are not in the order of time; a question with an answer, and one that was never told."""
    sessions = {
        "s_late": (
            "2023/05/30 (Tue) 09:00",
            [("user", "I sold the red bicycle.", True), ("assistant", "Good.", False)],
        ),
        "s_early": (
            "2023/05/20 (Sat) 02:21",
            [("user", "Tell me about tides.", False), ("assistant", "Gladly.", False)],
        ),
    }

    def record(name: str, question: str, answer: Any, told: list[str]) -> dict[str, Any]:
        return {
            "question_id": name,
            "question_type": "single-session-user",
            "question": question,
            "answer": answer,
            "question_date": "2023/06/01 (Thu) 10:00",
            "haystack_session_ids": list(sessions),
            "haystack_dates": [date for date, _ in sessions.values()],
            "haystack_sessions": [
                [
                    {"role": role, "content": text, **({"has_answer": True} if marked else {})}
                    for role, text, marked in turns
                ]
                for _, turns in sessions.values()
            ],
            "answer_session_ids": told,
        }

    first = record("a1", "What did I sell?", "the red bicycle", ["s_late"])
    return _written(folder / "longmemeval.json", [first, record("a2_abs", "What did my aunt sell?", "not told", [])])


def hotpot_file(folder: Path) -> Path:
    """Two questions that share a paragraph; the first takes two."""
    paragraphs = [["Ada", ["Ada was born in Oslo.", " She keeps bees."]], ["Oslo", ["Oslo lies in Norway."]]]
    other = ["Rome", ["Rome lies in Italy."]]
    first = {
        "_id": "a",
        "type": "bridge",
        "question": "In which country was Ada born?",
        "answer": "Norway",
        "supporting_facts": [["Ada", 0], ["Oslo", 0], ["Oslo", 1]],
        "context": [*paragraphs, other],
    }
    second = {**first, "_id": "b", "type": "comparison", "question": "Where does Rome lie?", "answer": "Italy"}
    second |= {"supporting_facts": [["Rome", 0]], "context": [other, paragraphs[0]]}
    return _written(folder / "hotpot.json", [first, second])


def musique_file(folder: Path) -> Path:
    paragraphs = [
        {"idx": 0, "title": "Ada", "paragraph_text": "Ada was born in Oslo.", "is_supporting": True},
        {"idx": 1, "title": "Rome", "paragraph_text": "Rome lies in Italy.", "is_supporting": False},
    ]
    question = {"id": "2hop__1_2", "paragraphs": paragraphs, "question": "Where was Ada born?", "answer": "Oslo"}
    never = {**question, "id": "3hop1__1_2_3", "answerable": False}
    return _written(
        folder / "musique.json", [{**question, "answer_aliases": ["Kristiania"], "answerable": True}, never]
    )


def babi_file(folder: Path) -> Path:
    lines = ["1 John went to the hall.", "2 Mary went to the bath.", "3 Where is John? \thall\t1"]
    lines += ["4 John went to the attic.", "5 Where is John? \tattic\t4"]
    lines += ["1 Sandra took the milk.", "2 Where is Sandra? \tkitchen\t1"]
    file = folder / "qa1.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def counterfact_file(folder: Path) -> Path:
    records = [
        {
            "prompt": f"{name} was born in",
            "target_new": TOWNS[number - 1],
            "ground_truth": TOWNS[number],
            "rephrase_prompt": f"The home town of {name} is",
            "locality_prompt": f"The sister of {name} was born in",
            "locality_ground_truth": TOWNS[number],
        }
        for number, name in enumerate(NAMES)
    ]
    return _written(folder / "counterfact.json", records)


def zsre_file(folder: Path) -> Path:
    records = [
        {
            "prompt": f"Where was {name} born?",
            "target_new": TOWNS[number - 1],
            "ground_truth": [TOWNS[number]],
            "rephrase_prompt": f"What is the home town of {name}?",
            "locality": {"Relation_Specificity": [{"prompt": f"The trade of {name} is", "ground_truth": ["baker"]}]},
        }
        for number, name in enumerate(NAMES)
    ]
    return _written(folder / "zsre.json", records)


def _written(file: Path, content: Any) -> Path:
    file.write_text(json.dumps(content), encoding="utf-8")
    return file
