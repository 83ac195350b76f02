"""A conversation goes on behind what was said, as far as it fits, and knows what was told in it."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from remanence import MemoryModel
from remanence.conversation import Conversation, _Words
from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.model.read import Answer
from tests.support.tiny import decoder, tokenizer, with_memory, with_text

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def chatting() -> PreTrainedTokenizerFast:
    made = tokenizer()
    made.chat_template = TEMPLATE
    return made


def conversation(positions: int = 1024, tokens: Any = None) -> Conversation:
    hf = decoder(vocab_size=300, num_hidden_layers=1, max_position_embeddings=positions)
    model = with_text(hf, chatting() if tokens is None else tokens)
    return Conversation(model, model.new_memory())


def said(talk: Conversation) -> list[tuple[str, str]]:
    return [(one["role"], one["content"]) for one in talk.history]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the model is asked; it answers with numbers."""
    made: list[Any] = []

    def ask(self: MemoryModel, memory: Any, question: Any, **_: Any) -> Answer:
        made.append(question)
        return Answer(f"answer {len(made)}", True, [])

    monkeypatch.setattr(MemoryModel, "ask", ask)
    return made


def test_ask_streams_the_words_of_the_answer() -> None:
    talk, shown = conversation(), list[str]()
    talk.tell("Alice Brown was born in Oslo.")
    answer = talk.ask("Where was she born?", shown.append)
    assert "".join(shown).strip() == answer.text != ""
    assert len(shown) > 1
    assert talk.read is not None
    assert [one["text"] for one in talk.read] == ["Alice Brown was born in Oslo."]
    assert talk.read[0]["score"] == round(answer.sources[0][1], 4)


def test_ask_goes_on_behind_what_was_said(asked: list[Any]) -> None:
    talk, shown = conversation(), list[str]()
    talk.ask("Who?", shown.append)
    talk.ask("And where?", shown.append)
    assert shown == ["answer 1", "answer 2"]  # what was not streamed is shown at once
    assert [message["content"] for message in asked[-1]] == ["Who?", "answer 1", "And where?"]
    assert [role for role, _ in said(talk)] == ["user", "assistant"] * 2


def test_ask_lets_the_oldest_turns_go_where_they_do_not_fit(asked: list[Any]) -> None:
    talk = conversation(positions=400)
    talk.tell("Alice Brown was born in Oslo.")
    assert talk.memory.chunks is not None
    for number in range(12):
        talk.ask(f"Question number {number}?", lambda _: None)
        prompt = talk.model.texts.prompt(asked[-1], talk.model.device, date=talk.memory.chunks.date)
        assert len(prompt.ids) + talk.memory.chunks.tokens + 128 <= 400
    assert 1 < len(asked[-1]) < 23
    assert asked[-1][0]["role"] == "user"
    assert asked[-1][-2]["content"] == "answer 11"
    assert said(talk)[-1] == ("assistant", "answer 12")


def test_ask_that_fails_leaves_the_conversation_as_it_was(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    talk = conversation()
    talk.ask("Who?", lambda _: None)
    before = said(talk)

    def fails(*_: Any, **__: Any) -> Answer:
        raise CorruptMemoryError("no numbers")

    monkeypatch.setattr(MemoryModel, "ask", fails)
    with pytest.raises(CorruptMemoryError):
        talk.ask("And where?", lambda _: None)
    assert said(talk) == before


@pytest.mark.parametrize("kind", ["no template", "learned"])
def test_ask_of_a_model_that_knows_no_conversations_is_one_question(kind: str, asked: list[Any]) -> None:
    if kind == "learned":
        model = with_memory(decoder(vocab_size=300), tokenizer=chatting())
        talk = Conversation(model, model.new_memory())
    else:
        talk = conversation(tokens=tokenizer())
    for question in ("Who?", "Where?"):
        talk.ask(question, lambda _: None)
    assert asked == ["Who?", "Where?"]
    assert talk.history == []


@pytest.mark.parametrize(
    ("pieces", "lines", "shown"),
    [
        (["", "\n", " Oslo ", "is\nmore", " and more"], False, "Oslo is"),
        (["\n", " Oslo\n", "is"], True, "Oslo\nis"),
    ],
)
def test_words_of_a_line_end_with_it(pieces: list[str], lines: bool, shown: str) -> None:
    made: list[str] = []
    words = _Words(tokenizer(), made.append, lines=lines)
    for piece in pieces:
        words.on_finalized_text(piece)
    assert "".join(made) == shown
    assert words.shown


def test_undo_forgets_what_was_told_last_and_is_still_there() -> None:
    talk = conversation()
    for name in ("Ann", "Bob", "Cid"):
        talk.tell(f"{name} lives in Rome.")
    talk.forget(1)
    assert talk.undo().id == 2
    assert talk.undo().id == 0
    assert talk.memory.writes == []
    with pytest.raises(InvalidInputError, match="nothing was told in this conversation"):
        talk.undo()


def test_changed_says_whether_there_is_something_to_save() -> None:
    talk = conversation()
    talk.ask("Who?", lambda _: None)
    assert not talk.changed
    for change in (lambda: talk.tell("Ann lives in Rome."), lambda: talk.tell("Bob too."), talk.undo):
        talk.changed = False
        change()
        assert talk.changed
    talk.changed = False
    talk.forget(0)
    assert talk.changed
    assert [one.source for one in talk.memory.writes] == []


def test_what_is_told_has_the_chat_as_its_source() -> None:
    talk = conversation()
    talk.tell("Ann lives in Rome.")
    assert [one.source for one in talk.memory.writes] == ["chat"]
