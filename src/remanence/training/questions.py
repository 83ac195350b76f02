"""Questions about passages, from the formats that published sets come in.

*.json     SQuAD 1.1 ({"data": [{"title", "paragraphs": [{"context", "qas"}]}]}), MuSiQue (a list of objects with
           "paragraphs" and "question"), or edits with evidence as KnowledgeSpread has them ("src", "alt",
           "fake_evidence")
*.jsonl    NQ with the gold passage ("question", "answers", "ctxs"), or our own: {"question", "answers",
           "passages": [...], "supporting": [0]}; pages and conversations of `remanence.data`
"""

import json
import random
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from remanence.data.talks import talk
from remanence.errors import InvalidInputError
from remanence.memory.lexical import Postings, asked, words
from remanence.texts import json_lines, texts_of

PAGE, TALK = "page: ", "talk: "  # how topics begin whose passages are told together
_COPIES = 3  # of a conversation, with other names and dates
_LOOKS_LIKE = 2  # paragraphs of a page that a question resembles which none answers


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: as a person would ask it.
        answers: accepted, the shortest first; none: no passage holds the answer, though one may look like it.
        passages: numbers of the passages that it takes to answer.
    """

    text: str
    answers: tuple[str, ...]
    passages: tuple[int, ...]


@dataclass
class QuestionSet:
    """Questions and the passages that they are about.

    Attributes:
        passages: their texts.
        topics: of each passage; those of one topic are easily mistaken for each other. Topics that differ behind a
            "#" alone are the same but for names: they are held out together.
        questions: all of them.
    """

    passages: list[str] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    _known: dict[str, int] = field(default_factory=dict, repr=False)

    def add_passage(self, text: str, topic: str) -> int:
        """The number of a passage, which stands in the set once."""
        text = text.strip()
        if text not in self._known:
            self._known[text] = len(self.passages)
            self.passages.append(text)
            self.topics.append(topic)
        return self._known[text]

    def ask(self, text: str, answers: str | Iterable[str], passages: Iterable[int]) -> None:
        """Add a question; one that is blank, or whose answers or passages are, is left out.

        Raises:
            TypeError: an answer is no text.
        """
        given, numbers = {answer.strip(): None for answer in texts_of(answers)}, tuple(passages)
        accepted = sorted(filter(None, given), key=len)
        if text.strip() and (accepted or not given) and all(self.passages[number] for number in numbers):
            self.questions.append(Question(text.strip(), tuple(accepted), numbers))

    def without(self, texts: Iterable[str]) -> "QuestionSet":
        """The questions about other passages than these, which are held out and become blank."""
        held_out = {text.strip() for text in texts}
        return self._only({place for place, text in enumerate(self.passages) if text not in held_out})

    def _only(self, places: Container[int]) -> "QuestionSet":
        """The questions about some passages alone; the others become blank."""
        texts = [text if place in places else "" for place, text in enumerate(self.passages)]
        kept = [question for question in self.questions if all(place in places for place in question.passages)]
        return QuestionSet(texts, self.topics, kept)

    def joined(self, other: "QuestionSet") -> "QuestionSet":
        """The questions of both."""
        both = QuestionSet()
        for part in (self, other):
            numbers = [both.add_passage(text, topic) for text, topic in zip(part.passages, part.topics, strict=True)]
            both.questions += [replace(q, passages=tuple(numbers[p] for p in q.passages)) for q in part.questions]
        return both

    def split(self, share: float, seed: int = 0) -> "tuple[QuestionSet, QuestionSet]":
        """Questions to train on and to validate on, which share no passage: about `share` of the passages go to the
        second, whole topics where these are small. What the first does not have is blank there."""
        rng, used = random.Random(seed), sorted({p for q in self.questions for p in q.passages})
        by_topic: dict[str, list[int]] = {}
        for passage in used:
            by_topic.setdefault(self.topics[passage].partition("#")[0], []).append(passage)
        held: set[int] = set()
        for topic in sorted(by_topic):
            members = by_topic[topic]
            if len(members) <= max(8, len(used) // 20) or "#" in self.topics[members[0]]:
                held |= set(members) if rng.random() < share else set()
            else:
                held |= {passage for passage in members if rng.random() < share}
        second = [q for q in self.questions if any(passage in held for passage in q.passages)]
        first = self._only({place for place in range(len(self.passages)) if place not in held})
        return first, QuestionSet(self.passages, self.topics, second)


def load_questions(paths: Sequence[Path]) -> QuestionSet:
    """The questions of some files, or of all files of a known format in some folders.

    Raises:
        FileNotFoundError: nothing there.
        InvalidInputError: a file is of no known format.
    """
    files = [file for path in paths for file in (_inside(path) if path.is_dir() else [path])]
    if not files:
        raise FileNotFoundError(f"there are no .json or .jsonl files in {', '.join(map(str, paths))}")
    made = QuestionSet()
    for file in files:
        before = len(made.questions)
        for number, record in enumerate(_records(file)):
            reader = _reader_of(record, file)
            try:
                reader(made, record, file.stem)
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                raise InvalidInputError(f"{file}, record {number} lacks or misuses something: {error}") from error
        if len(made.questions) == before:
            raise InvalidInputError(f"{file} holds no question with an answer")
    return made


def own_questions(*, held_out: bool = False) -> QuestionSet:
    """Those about pages and conversations that come with the package; `held_out`: such as nothing is trained on."""
    folder, end = Path(str(resources.files("remanence.data"))), "_held_out" if held_out else ""
    return load_questions([folder / f"{kind}{end}.jsonl" for kind in ("pages", "talks")])


def passages_of(paths: Sequence[Path]) -> list[str]:
    """The passages of files that are held out: what is never trained on."""
    return load_questions(paths).passages if paths else []


def _inside(folder: Path) -> list[Path]:
    return sorted(file for kind in ("*.json", "*.jsonl") for file in folder.rglob(kind))


def _records(file: Path) -> Iterator[Any]:
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            yield from json_lines(text, file)
            return
        content = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file} is not JSON: {error}") from error
    yield from content["data"] if isinstance(content, dict) and isinstance(content.get("data"), list) else content


Reader = Callable[[QuestionSet, dict[str, Any], str], None]


def _reader_of(record: Any, file: Path) -> Reader:
    if isinstance(record, dict):
        for keys, reader in _FORMATS:
            if keys <= record.keys():
                return reader
    raise InvalidInputError(f"{file} is of no known format; see remanence.training.questions for those there are")


def _squad(made: QuestionSet, article: dict[str, Any], name: str) -> None:
    for paragraph in article["paragraphs"]:
        number = made.add_passage(paragraph["context"], f"{name}/{article['title']}")
        for qa in paragraph["qas"]:
            if qa["answers"]:
                made.ask(qa["question"], (answer["text"] for answer in qa["answers"]), [number])


def _natural_questions(made: QuestionSet, record: dict[str, Any], name: str) -> None:
    gold = record["ctxs"][0]
    number = made.add_passage(f"{gold['title']}\n{gold['text'].strip()}", name)
    said = made.passages[number].lower()
    if there := [answer for answer in texts_of(record["answers"]) if answer.lower() in said]:
        made.ask(record["question"], there, [number])


def _musique(made: QuestionSet, record: dict[str, Any], name: str) -> None:
    matters = []
    for paragraph in record["paragraphs"]:
        number = made.add_passage(f"{paragraph['title']}\n{paragraph['paragraph_text']}", f"{name}/{record['id']}")
        if paragraph["is_supporting"]:
            matters.append(number)
    made.ask(record["question"], [record["answer"], *record.get("answer_aliases", [])], matters)


def _evidence(made: QuestionSet, record: dict[str, Any], name: str) -> None:
    number = made.add_passage(record["fake_evidence"], name)
    if record["alt"].lower() in made.passages[number].lower():
        for wording in (record["src"], record["rephrase"]):
            made.ask(wording, [record["alt"]], [number])


def _page(made: QuestionSet, record: dict[str, Any], name: str) -> None:
    numbers = [made.add_passage(paragraph, f"{PAGE}{name}/{record['title']}") for paragraph in record["paragraphs"]]
    for fact in record["facts"]:
        for wording in fact["questions"]:
            made.ask(wording, fact["answers"][:1], [numbers[fact["paragraph"]]])
    postings = Postings()
    for number in numbers:
        postings.add(number, words(made.passages[number]))
    for question in record["not_told"]:
        scores = postings.scores(asked(question))
        made.ask(question, [], sorted(scores, key=lambda number: -scores[number])[:_LOOKS_LIKE] or numbers[:1])


def _talk(made: QuestionSet, record: dict[str, Any], name: str) -> None:
    for copy in range(_COPIES):
        said = talk(record, random.Random(f"{copy} {record['questions'][0]['question']}"))
        topic = f"{TALK}{name}/{record['questions'][0]['question']}#{copy}"
        numbers = [made.add_passage(turn, topic) for turn in said.turns]
        for question, answer, turns in said.questions:
            made.ask(question, [] if answer is None else [answer], [numbers[turn] for turn in turns])


def _own(made: QuestionSet, record: dict[str, Any], name: str) -> None:
    numbers = [made.add_passage(text, record.get("topic", name)) for text in record["passages"]]
    supporting = record.get("supporting", range(len(numbers)))
    made.ask(record["question"], record["answers"], [numbers[place] for place in supporting])


_FORMATS: list[tuple[set[str], Reader]] = [
    ({"title", "paragraphs", "facts", "not_told"}, _page),
    ({"sessions", "questions", "genders"}, _talk),
    ({"title", "paragraphs"}, _squad),
    ({"question", "answers", "ctxs"}, _natural_questions),
    ({"paragraphs", "question", "answer", "id"}, _musique),
    ({"src", "rephrase", "alt", "fake_evidence"}, _evidence),
    ({"question", "answers", "passages"}, _own),
]
