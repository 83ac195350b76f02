"""What the demonstration on text slots does: tell, ask, forget, and wait for the first token."""

from typing import Any

import pytest

from remanence import MemoryModel
from remanence.data.handbook import Asked, Paragraph
from remanence.demo.handbook import ANSWER_TOKENS, Reply, ask, first_token, forget, holds, tell, without_memory
from tests.support.tiny import decoder, tokenizer, with_text

NOTES = [
    Paragraph("Alice Brown was born in Oslo.", "notes.md", 1),
    Paragraph("She works as a baker in Bergen.", "novel.txt", 7),
    Paragraph("Alice Brown lives in Rome.", "notes.md", 2),
]
WHERE = Asked("Where was Alice Brown born?", ("Oslo", "in Oslo"), 1)


@pytest.fixture(scope="module")
def model() -> MemoryModel:
    return with_text(decoder(vocab_size=300, num_hidden_layers=1, max_position_embeddings=1024), tokenizer())


def reply(text: str, *, found: bool = True, asked: Asked = WHERE, read: Any = (("notes.md", 1),)) -> Reply:
    return Reply(asked, text, found, read, "in Rome", 0.5)


@pytest.mark.parametrize(
    ("answer", "truths", "right"),
    [
        ("It is kept in the pantry.", ["Pantry"], True),
        ("on the second Thursday", ["second Thursday"], True),
        ("forty-two crowns", ["forty-two"], True),
        ("forty two crowns", ["forty-two", "forty two"], True),
        ("a clockwork", ["the clock"], False),
        ("16 people", ["6"], False),
        ("", ["6"], False),
        ("six", [], False),
    ],
)
def test_holds_takes_whole_words_whatever_their_case(answer: str, truths: list[str], right: bool) -> None:
    assert holds(answer, truths) is right


def test_reply_is_right_where_a_truth_was_found_or_nothing_where_nothing_was_told() -> None:
    nobody = Asked("Who plays the organ?")
    assert reply("She was born in Oslo.").right
    assert not reply("She was born in Oslo.", found=False).right
    assert not reply("She was born in Rome.").right
    assert reply("", found=False, asked=nobody).right
    assert not reply("Alice does.", asked=nobody).right


def test_reply_knows_whether_the_right_paragraph_was_read_first() -> None:
    assert reply("", read=(("notes.md", 1), ("notes.md", 2))).from_right_place("notes.md")
    for read in ((("notes.md", 2), ("notes.md", 1)), (("novel.txt", 1),), ()):
        assert not reply("", read=read).from_right_place("notes.md")


def test_tell_keeps_source_and_number_of_each_paragraph(model: MemoryModel) -> None:
    memory, seen = model.new_memory(), list[int]()
    tell(model, memory, NOTES, seen.append)
    found = [(one.text, one.source, one.metadata["paragraph"]) for one in memory.writes]
    assert found == [(one.text, one.source, one.number) for one in NOTES]
    assert seen == [1, 2, 3]


def test_ask_names_the_paragraphs_that_were_read_best_first(model: MemoryModel) -> None:
    memory = model.new_memory()
    tell(model, memory, NOTES)
    made = ask(model, memory, WHERE, "in Rome")
    answer = model.ask(memory, WHERE.text, max_new_tokens=ANSWER_TOKENS)
    assert (made.text, made.found, made.without) == (answer.text, True, "in Rome")
    assert made.read[0] == ("notes.md", 1)
    assert set(made.read) == {("notes.md", 1), ("notes.md", 2), ("novel.txt", 7)}
    assert made.seconds > 0
    about = made.to_json()
    assert about["sources"][0] == {"source": "notes.md", "paragraph": 1}
    assert about["truths"] == ["Oslo", "in Oslo"]


def test_forget_takes_one_paragraph_of_one_text_out(model: MemoryModel) -> None:
    memory = model.new_memory()
    tell(model, memory, [*NOTES, Paragraph("Bob Green lives in Paris.", "novel.txt", 1)])
    forget(model, memory, "notes.md", 1)
    assert [one.text for one in memory.writes] == [
        "She works as a baker in Bergen.",
        "Alice Brown lives in Rome.",
        "Bob Green lives in Paris.",
    ]


def test_without_memory_is_what_the_model_says_by_itself(model: MemoryModel) -> None:
    questions = [f"Where was Alice Brown born in {year}?" for year in range(35)]  # more than one batch
    nothing = model.new_memory()
    assert without_memory(model, questions) == [
        model.ask(nothing, one, max_new_tokens=ANSWER_TOKENS).text for one in questions
    ]


def test_first_token_reads_the_same_paragraphs_as_text(model: MemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []
    whole = MemoryModel.generate

    def generate(self: MemoryModel, memory: Any, prompt: str, **options: Any) -> Any:
        prompts.append(prompt)
        return whole(self, memory, prompt, **options)

    monkeypatch.setattr(MemoryModel, "generate", generate)
    told = [*NOTES, Paragraph("A long way. " * 400, "long.md", 1)]
    replies = [
        reply("", read=(("notes.md", 2), ("notes.md", 1))),
        reply("", read=()),
        reply("", read=(("long.md", 1),)),
    ]
    seen: list[int] = []
    made = first_token(model, replies, told, seen.append)
    assert made is not None
    text = "Alice Brown lives in Rome.\n\nAlice Brown was born in Oslo."
    assert prompts == [f"{text}\n\nQuestion: Where was Alice Brown born? Answer:"]  # what does not fit is left out
    assert (made.memory, made.paragraphs, made.questions) == (0.5, 2, 1)
    assert made.tokens == len(
        model.tokenizer("Alice Brown lives in Rome.\n\nAlice Brown was born in Oslo.")["input_ids"]
    )
    assert made.text > 0
    assert seen == [1, 2, 3]
    assert first_token(model, replies[1:], told) is None
