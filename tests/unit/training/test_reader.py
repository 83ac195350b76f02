"""Training a reader: what a step is made of, that it learns, and that a run that was cut goes on as it would have."""

import json
import random
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from remanence import MemoryModel
from remanence.config import LoraSettings
from remanence.data.notes import general_prompt, note
from remanence.errors import InvalidInputError
from remanence.training.questions import PAGE, Question, QuestionSet, load_questions, own_questions, passages_of
from remanence.training.recipes import training_arguments
from remanence.training.tasks.reader import ReaderTask, adapter, answer_loss, prepare
from remanence.training.tasks.reader_data import REFUSAL, Lessons, LessonSettings
from remanence.training.trainer import TaskTrainer
from tests.support import tiny
from tests.support.tiny import decoder
from tests.unit.model.test_chat import TEMPLATE

LORA = LoraSettings(r=4, lora_alpha=8.0, target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"))


def reader(chat: bool = True) -> MemoryModel:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE if chat else None
    return MemoryModel.attach(decoder(vocab_size=300), tokenizer, lora=LORA, chunk=64)


def questions() -> QuestionSet:
    made = QuestionSet()
    for name, town in (("Alice", "Oslo"), ("Bob", "Lima"), ("Carol", "Rome"), ("Dan", "Bern")):
        number = made.add_passage(f"{name} was born in {town}.", "people")
        made.ask(f"Where was {name} born?", [f"in {town}", town], [number])
    return made


def lessons(model: MemoryModel, seed: int = 0, **settings: Any) -> Lessons:
    return Lessons(model, questions(), LessonSettings(**{"groups": 2, "rows": 2, "slots": 200, **settings}), seed=seed)


def trainer(model: MemoryModel, drawn: Lessons, folder: Path, *, steps: int, lr: float, save_steps: int) -> TaskTrainer:
    args = training_arguments(folder, steps=steps, save_steps=save_steps, bf16=False, learning_rate=lr)
    return TaskTrainer(ReaderTask(model, drawn.step, "base"), args=args)


def said(model: MemoryModel, ids: Any) -> str:
    return str(model.tokenizer.decode(ids, skip_special_tokens=True))


def test_step_of_lessons_is_drawn_from_its_number_alone() -> None:
    model = reader()
    first, second = lessons(model), lessons(model)
    second.step(7)
    for number in (3, 0):
        one, other = first.step(number), second.step(number)
        assert [group.rows for group in one] == [group.rows for group in other]
        for a, b in zip(one, other, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a.slots, b.slots, strict=True))
    assert [group.rows for group in first.step(3)] != [group.rows for group in first.step(4)]
    assert [group.rows for group in first.step(3)] != [group.rows for group in lessons(model, seed=1).step(3)]


def test_lessons_hold_the_answer_unless_they_are_refused() -> None:
    model = reader()
    for refused in (0.0, 1.0):
        made = lessons(model, notes=0, general=0, refused=refused)
        for number in range(6):
            for group in made.step(number):
                answers = {said(model, row.answer) for row in group.rows}
                assert answers <= ({REFUSAL} if refused else {"Oslo", "Lima", "Rome", "Bern"})


def test_lessons_add_prompts_that_no_memory_answers() -> None:
    model = reader()
    drawn = lessons(model, notes=0, general=1.0, refused=0.0)
    rows = [row for group in drawn.step(0) for row in group.rows]
    assert [said(model, row.answer) for row in rows].count(REFUSAL) == 2


@pytest.mark.parametrize("chat", [True, False])
def test_train_lowers_the_loss_and_leaves_the_decoder_alone(chat: bool, tmp_path: Path) -> None:
    model = reader(chat)
    prepare(model)
    drawn = lessons(model, notes=0, general=0, refused=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    held_out = [drawn.step(number) for number in range(100, 104)]
    first = sum(float(answer_loss(model, groups).detach()) for groups in held_out)
    trainer(model, drawn, tmp_path, steps=40, lr=3e-2, save_steps=40).train()
    assert sum(float(answer_loss(model, groups).detach()) for groups in held_out) < 0.7 * first
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and changed <= set(adapter(model))


def test_train_resumes_exactly(tmp_path: Path) -> None:
    def run(folder: str, *, steps: int, resume: bool = False) -> MemoryModel:
        model = reader()
        prepare(model)
        run = trainer(model, lessons(model), tmp_path / folder, steps=6, lr=1e-2, save_steps=3)
        run.add_callback(_StopAt(steps))
        assert run.run(resume=resume) == (steps == 6)
        return model

    whole, cut = run("whole", steps=6), run("cut", steps=3)
    again = run("cut", steps=6, resume=True)
    assert all(torch.equal(p, adapter(again)[name]) for name, p in adapter(whole).items())
    assert not all(torch.equal(p, adapter(cut)[name]) for name, p in adapter(whole).items())


def test_prepare_refuses_a_model_without_a_reader() -> None:
    with pytest.raises(InvalidInputError, match="lora=LoraSettings"):
        prepare(MemoryModel.attach(decoder()))


def test_notes_hold_their_answers() -> None:
    rng = random.Random(0)
    for _ in range(200):
        made = note(rng)
        assert all(answer.lower() in made.text.lower() for _, answer in made.questions), made
        assert "{" not in general_prompt(rng)


def test_load_questions_reads_each_format(tmp_path: Path) -> None:
    asks = [{"question": "What is cold?", "answers": [{"text": "Oslo"}]}, {"question": "No?", "answers": []}]
    squad = {"title": "T", "paragraphs": [{"context": "Oslo is cold.", "qas": asks}]}
    contents: dict[str, Any] = {
        "squad.json": {"data": [squad]},
        "musique.json": [
            {
                "id": "1",
                "question": "Who?",
                "answer": "Ann",
                "answer_aliases": ["Anna"],
                "paragraphs": [
                    {"title": "A", "paragraph_text": "Ann did.", "is_supporting": True},
                    {"title": "B", "paragraph_text": "Bob did not.", "is_supporting": False},
                ],
            }
        ],
        "edits.json": [{"src": "What?", "rephrase": "Which?", "alt": "boats", "fake_evidence": "It makes boats."}],
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content))
    lines = [
        {"question": "who won", "answers": ["Eve", "nobody"], "ctxs": [{"title": "W", "text": "Eve won."}]},
        {"question": "Where?", "answers": ["here"], "passages": ["It is here.", "It is not."], "supporting": [0]},
    ]
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    made = load_questions([tmp_path])
    asked = {q.text: (q.answers, [made.passages[p] for p in q.passages]) for q in made.questions}
    assert asked == {
        "What?": (("boats",), ["It makes boats."]),
        "Which?": (("boats",), ["It makes boats."]),
        "who won": (("Eve",), ["W\nEve won."]),
        "Where?": (("here",), ["It is here."]),
        "Who?": (("Ann", "Anna"), ["A\nAnn did."]),
        "What is cold?": (("Oslo",), ["Oslo is cold."]),
    }
    held_out = passages_of([tmp_path / "squad.json"])
    assert [q.text for q in made.without(held_out).questions] == [q for q in asked if q != "What is cold?"]
    train, validation = made.split(0.4, seed=1)
    assert len(train.questions) + len(validation.questions) == 6
    passages = [{p for q in part.questions for p in q.passages} for part in (train, validation)]
    assert not passages[0] & passages[1]


def test_what_is_blank_is_neither_asked_nor_answered(tmp_path: Path) -> None:
    whole = {"question": "Who?", "answers": ["", "Ann"], "passages": ["Ann did."]}
    blank = [{**whole, "question": " "}, {**whole, "answers": [" "]}, {**whole, "passages": [""]}]
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(line) for line in [whole, *blank]))
    [question] = load_questions([tmp_path]).questions
    assert question == Question("Who?", ("Ann",), (0,))


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [("a.json", "{", "not JSON"), ("a.json", "[{}]", "no known format"), ("a.json", '{"data": []}', "no question")],
)
def test_load_questions_says_what_is_wrong(tmp_path: Path, name: str, content: str, match: str) -> None:
    with pytest.raises(FileNotFoundError, match="there are no"):
        load_questions([tmp_path])
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInputError, match=match):
        load_questions([tmp_path])


class _StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = state.global_step >= self.step
        return control


ALLOTMENTS = {
    "title": "Allotments",
    "paragraphs": ["The gate is shut at nine.", "Water costs six crowns a year."],
    "facts": [{"paragraph": 0, "questions": ["When is it shut?", "When do they lock up?"], "answers": ["nine"]}],
    "not_told": ["How much does the gate cost?"],
}
TALK = {
    "genders": ["f", "m"],
    "sessions": [
        {"turns": [{"speaker": "A", "text": "I got a dog yesterday, {B}."}]},
        {"turns": [{"speaker": "B", "text": "My cat was three last Friday."}]},
        {"turns": [{"speaker": "A", "text": f"Day {number}."} for number in range(8)]},
    ],
    "questions": [
        {"question": "When did {A} get a dog?", "answer": "{date-1}", "turns": [0], "swap": True},
        {"question": "When was {B}'s cat three?", "answer": "{weekday-friday}", "turns": [1], "swap": False},
        {"question": "What have they?", "answer": "a dog, a cat", "turns": [0, 1], "swap": False},
    ],
}


def test_pages_ask_in_two_wordings_and_beyond_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "pages.jsonl").write_text(json.dumps(ALLOTMENTS))
    made = load_questions([tmp_path])
    assert [(q.text, q.answers, q.passages) for q in made.questions] == [
        ("When is it shut?", ("nine",), (0,)),
        ("When do they lock up?", ("nine",), (0,)),
        ("How much does the gate cost?", (), (0,)),  # the paragraph that it resembles
    ]


def test_talks_have_drawn_names_and_dates_and_ask_about_the_wrong_one(tmp_path: Path) -> None:
    (tmp_path / "talks.jsonl").write_text(json.dumps(TALK))
    made = load_questions([tmp_path])
    assert len(made.passages) == 30 and len(set(made.topics)) == 3
    for copy in range(3):
        told, about, wrong, cat, both = made.questions[4 * copy :][0], *made.questions[4 * copy :][:4]
        turn = made.passages[told.passages[0]]
        (name,) = re.findall(r"When did (\w+) get a dog", about.text)
        (other,) = re.findall(r"When did (\w+) get a dog", wrong.text)
        assert name in turn and f"yesterday, {other}." in turn and name != other
        assert wrong.answers == () and wrong.passages == about.passages
        day = datetime.strptime(about.answers[0], "%d %B %Y") + timedelta(days=1)
        assert str(day.year) in turn and f"{day:%B}" in turn and str(day.day) in turn
        assert datetime.strptime(cat.answers[0], "%d %B %Y").strftime("%A") == "Friday"
        assert both.answers == ("a dog, a cat",) and both.passages == (10 * copy, 10 * copy + 1)
    one, other_part = made.split(0.5)
    assert not one.questions or not other_part.questions  # the three are one conversation


def test_lessons_ask_about_every_passage_that_is_read() -> None:
    made = lessons(reader(), notes=0, general=0, refused=0.0, rows=4)
    towns = {"Alice": "Oslo", "Bob": "Lima", "Carol": "Rome", "Dan": "Bern"}
    seen = 0
    for number in range(30):
        texts, asked = made._drawn(random.Random(number))
        assert {question.split()[2] for question, _ in asked} == {text.split()[0] for text in texts}
        assert all(answer == towns[question.split()[2]] for question, answer in asked)
        seen = max(seen, len(asked))
    assert seen > 1


def test_what_comes_with_the_package_is_questions_with_answers() -> None:
    made = [own_questions(), own_questions(held_out=True)]
    assert not set(made[0].passages) & set(made[1].passages)
    for one in made:
        for question in one.questions:
            assert "{" not in question.text + "".join(question.answers), question
            if one.topics[question.passages[0]].startswith(PAGE):
                assert all(answer in one.passages[question.passages[0]] for answer in question.answers), question
