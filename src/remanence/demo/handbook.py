"""The demonstration on text slots: a text is told among others, asked about, and one paragraph of it forgotten."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.generation.streamers import BaseStreamer

from remanence.data.handbook import Asked, Paragraph
from remanence.evaluation.scores import normalised
from remanence.memory import Memory
from remanence.model.chat import TODAY
from remanence.model.inputs import Content
from remanence.model.model import MemoryModel
from remanence.texts import first_line, prompt_of

ANSWER_TOKENS = 32
_ROWS = 32  # questions that are asked in one batch


@dataclass(frozen=True)
class Reply:
    """What a memory said to a question.

    Attributes:
        found: whether it had been told; where it had not, `text` does not count.
        read: the paragraphs that were read for it, best first: source and number.
        without: the answer of the same model without memory.
        seconds: to the first token, finding what to read counted.
    """

    asked: Asked
    text: str
    found: bool
    read: tuple[tuple[str, int], ...]
    without: str
    seconds: float

    @property
    def right(self) -> bool:
        """Whether the right answer stands in what was said; for what was not told, whether nothing was."""
        return holds(self.text, self.asked.truths) if self.found else not self.asked.truths

    @property
    def right_without(self) -> bool:
        return holds(self.without, self.asked.truths)

    def from_right_place(self, source: str) -> bool:
        """Whether the paragraph of `source` that has the answer was read first."""
        return self.read[:1] == ((source, self.asked.number),)

    def to_json(self) -> dict[str, Any]:
        sources = [{"source": source, "paragraph": number} for source, number in self.read]
        return {
            "question": self.asked.text,
            "truths": list(self.asked.truths),
            "paragraph": self.asked.number,
            "answer": self.text,
            "found": self.found,
            "right": self.right,
            "sources": sources,
            "without_memory": self.without,
            "right_without_memory": self.right_without,
            "seconds_to_first_token": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class FirstToken:
    """Medians over questions: seconds to the first token, and what was read for it."""

    memory: float
    text: float
    tokens: float
    paragraphs: float
    questions: int


class _Clock(BaseStreamer):
    """Notes when the first token comes; what a generation streams first is its prompt."""

    def __init__(self) -> None:
        self._began, self._streamed, self.seconds = time.perf_counter(), 0, 0.0

    def put(self, value: Any) -> None:
        self._streamed += 1
        if self._streamed == 2:
            self.seconds = time.perf_counter() - self._began

    def end(self) -> None:
        pass


def holds(answer: str, truths: Sequence[str]) -> bool:
    """Whether one of the truths stands in an answer, in whole words; case, articles and punctuation do not count."""
    return any(f" {normalised(truth)} " in f" {normalised(answer)} " for truth in truths)


def tell(
    model: MemoryModel,
    memory: Memory,
    paragraphs: Sequence[Paragraph],
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write each paragraph, with its source and, in its metadata, its number. `progress`: called with those written."""
    for done, paragraph in enumerate(paragraphs, 1):
        model.write(memory, paragraph.text, source=paragraph.source, metadata={"paragraph": paragraph.number})
        if progress is not None:
            progress(done)


def without_memory(model: MemoryModel, questions: Sequence[str]) -> list[str]:
    """The model's own answers."""
    memory, texts = model.new_memory(), list[str]()
    for start in range(0, len(questions), _ROWS):
        prompts = [_prompt(model, question) for question in questions[start : start + _ROWS]]
        rows = [memory] * len(prompts)
        texts += model.generate(rows, prompts, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    return [text.strip() if model.texts.chats else first_line(text) for text in texts]


def ask(model: MemoryModel, memory: Memory, asked: Asked, without: str) -> Reply:
    """Ask one question; `without`: what the model says without memory."""
    clock = _Clock()
    answer = model.ask(memory, asked.text, max_new_tokens=ANSWER_TOKENS, streamer=clock)
    records = {record.id: record for record in memory.writes}
    read = [records[write] for write, _ in answer.sources]
    places = tuple((record.source or "", int(record.metadata["paragraph"])) for record in read)
    return Reply(asked, answer.text, answer.found, places, without, clock.seconds)


def forget(model: MemoryModel, memory: Memory, source: str, number: int) -> None:
    """Take one paragraph out."""
    [write] = [
        record.id for record in memory.writes if record.source == source and record.metadata.get("paragraph") == number
    ]
    model.forget(memory, write)


def first_token(
    model: MemoryModel,
    replies: Sequence[Reply],
    told: Sequence[Paragraph],
    progress: Callable[[int], object] | None = None,
) -> FirstToken | None:
    """The wait for the first token, and that of the same questions behind the same paragraphs as text.

    None where nothing was read.
    """
    texts = {(paragraph.source, paragraph.number): paragraph.text for paragraph in told}
    nothing, timed, seconds, tokens = model.new_memory(), list[Reply](), list[float](), list[int]()
    for done, reply in enumerate(replies, 1):
        passages = "\n\n".join(texts[place] for place in reply.read)
        prompt = _prompt(model, reply.asked.text, f"{passages}\n\n")
        # Where one chunk of a long paragraph was read, the whole of it may be too long.
        if reply.read and _fits(model, prompt):
            clock = _Clock()
            model.generate(nothing, prompt, max_new_tokens=1, do_sample=False, streamer=clock)
            timed.append(reply)
            seconds.append(clock.seconds)
            tokens.append(len(model.tokenizer(passages, add_special_tokens=False)["input_ids"]))
        if progress is not None:
            progress(done)
    if not timed:
        return None
    return FirstToken(
        memory=statistics.median(reply.seconds for reply in timed),
        text=statistics.median(seconds),
        tokens=statistics.median(tokens),
        paragraphs=statistics.median(len(reply.read) for reply in timed),
        questions=len(timed),
    )


def _fits(model: MemoryModel, prompt: Content) -> bool:
    ids = model.texts.prompt(prompt, model.device, date=TODAY).ids
    return model.positions is None or len(ids) < model.positions


def _prompt(model: MemoryModel, question: str, before: str = "") -> Content:
    """As `ask` puts it, behind a text."""
    if model.texts.chats:
        return [{"role": "user", "content": before + question}]
    return before + prompt_of(question)
