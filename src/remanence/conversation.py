"""A conversation with a memory: what was said, what was told, and what the last answer was read from."""

from collections.abc import Callable
from typing import Any

from transformers import TextStreamer

from remanence.details import ranked
from remanence.errors import InvalidInputError
from remanence.memory import Memory, Receipt
from remanence.model.inputs import Message
from remanence.model.model import MemoryModel
from remanence.model.read import Answer

SOURCE = "chat"  # of what is told in a conversation
_ANSWER_TOKENS = 128  # of a model that is asked in conversations
_LINE_TOKENS = 64  # of one that says a line


class Conversation:
    """Questions and answers about one memory, and what is told to it meanwhile.

    Attributes:
        history: messages so far, as many of the newest as fit; none where the model is not asked in conversations.
        read: of the last answer: the writes it was read from, best first, with scores and texts; None before it.
        changed: whether the memory was, since this was last set to False.
    """

    def __init__(self, model: MemoryModel, memory: Memory) -> None:
        self.model, self.memory = model, memory
        self.history: list[Message] = []
        self.read: list[dict[str, Any]] | None = None
        self.changed = False
        self._told: list[int] = []
        self._chats = model.config.writer == "text" and model.texts.chats
        self._tokens = _ANSWER_TOKENS if self._chats else _LINE_TOKENS

    def ask(self, question: str, show: Callable[[str], object]) -> Answer:
        """The answer to a question behind what was said before; `show` gets its words as they come.

        Raises:
            RemanenceError: as `MemoryModel.ask`; nothing is added to the conversation then.
        """
        said: Message = {"role": "user", "content": question}
        self._make_room(said)
        words = _Words(self.model.tokenizer, show, lines=self._chats)
        asked = [*self.history, said] if self._chats else question
        answer = self.model.ask(self.memory, asked, max_new_tokens=self._tokens, streamer=words)
        if not words.shown:
            show(answer.text)
        self.read = ranked(self.memory.writes, answer.sources)
        if self._chats:
            self.history += [said, {"role": "assistant", "content": answer.text}]
        return answer

    def _make_room(self, said: Message) -> None:
        """Let the oldest turns go until the rest fits into the model's positions, with what may be read and said."""
        positions, chunks = self.model.positions, self.memory.chunks
        if not self._chats or positions is None or chunks is None:
            return
        reading = min(self.model.config.retrieval.slots, chunks.tokens, positions // 2)
        while self.history:
            prompt = self.model.texts.prompt([*self.history, said], self.model.device, date=chunks.date)
            if len(prompt.ids) + reading + self._tokens <= positions:
                return
            del self.history[:2]

    def tell(self, text: str) -> Receipt:
        """Write a text into the memory."""
        receipt = self.model.write(self.memory, text, source=SOURCE)
        self._told.append(receipt.id)
        self.changed = True
        return receipt

    def forget(self, write: int) -> Receipt:
        """Take a write out of the memory.

        Raises:
            InvalidInputError: there is no such write, or a learned memory cannot.
        """
        receipt = self.model.forget(self.memory, write)
        self._told = [told for told in self._told if told != write]
        self.changed = True
        return receipt

    def undo(self) -> Receipt:
        """Take out what was told last and is still there.

        Raises:
            InvalidInputError: nothing was told in this conversation, or a learned memory cannot forget.
        """
        if not self._told:
            raise InvalidInputError("nothing was told in this conversation that could be taken back; see /show")
        return self.forget(self._told[-1])


class _Words(TextStreamer):
    """Hands on the words of an answer as they come.

    Attributes:
        shown: whether there were any.
    """

    def __init__(self, tokenizer: Any, show: Callable[[str], object], *, lines: bool) -> None:
        """`lines`: the answer may have more than one; else it ends with its first."""
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.shown, self._show, self._lines, self._ended = False, show, lines, False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self.shown else text.lstrip()
        if not self._lines:
            text, newline, _ = text.partition("\n")
            text, self._ended = ("" if self._ended else text), self._ended or bool(newline)
        if text:
            self._show(text)
            self.shown = True
