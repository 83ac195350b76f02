"""From texts and messages to token ids: the head, what stands behind it, and chunks cut at sentence ends.

Head, chunk and rest are tokenised apart, so that a chunk has the same ids wherever it is read. Special tokens that
stand in a user's text are text, unless it is said that they are meant.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date as Date
from typing import Any

import torch
from torch import Tensor

from remanence.errors import InvalidInputError
from remanence.model.inputs import Message, check_messages, check_text, chunked, is_messages, to_ids

QUERY = 256  # tokens at most of what a prompt is taken to ask
TODAY = "2024-07-26"  # what a template that prints the date prints: a head must not change by the day
_MARK = "\ue000{}\ue001"  # stands for a message's text while a template is rendered
_CLOSING = "\"')\\]\u201d\u2019\u300d\u300f\uff09"  # quotation marks and brackets
_SENTENCE = re.compile(  # a full stop of any script and the space behind it, or an end of line
    rf"[.!?\u2026][{_CLOSING}]*\s+|[\u3002\uff01\uff1f][{_CLOSING}]*\s*|\n+\s*"
)


@dataclass(frozen=True)
class Prompt:
    """One row to read.

    Attributes:
        ids: `[T]`, as the stock model reads it.
        front: the tokens of `ids` that are its head; () where it has none.
        rest: what stands behind them, tokenised apart.
        bare: `[t]`, what is read behind learned slots: without the token that begins a text.
        query: `[q]`, what it asks: the last user message, else its last 256 tokens.
        query_text: the same as text; None where there are ids only.
        chat: whether it is a conversation, to which an assistant answers.
    """

    ids: Tensor
    front: tuple[int, ...]
    rest: Tensor
    bare: Tensor
    query: Tensor
    query_text: str | None
    chat: bool = False

    def behind(self, head: tuple[int, ...]) -> tuple[Tensor, int, int]:
        """The ids to read with chunks that were encoded behind `head`.

        Returns ids, how many of them are the head, and how many were put in front that the prompt does not have. A
        prompt with a head of its own keeps it.
        """
        if self.front and self.front != head:
            return torch.cat([_tensor(self.front, self.rest), self.rest]), len(self.front), 0
        return torch.cat([_tensor(head, self.rest), self.rest]), len(head), len(head) - len(self.front)


def _tensor(ids: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(ids, dtype=torch.long, device=like.device)


class Texts:
    """What a tokenizer and its chat template make of texts; without one, token ids are taken.

    Attributes:
        front: the token ids that stand in front of every text, such as BOS.
        vocabulary: how many token ids the model knows.
    """

    def __init__(self, tokenizer: Any, bos: int | None, vocabulary: int) -> None:
        """`bos`: the model's own, for a model without a tokenizer."""
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        self.front = (() if bos is None else (bos,)) if tokenizer is None else self._front_of(tokenizer)
        self._plain: Any = None
        self._added: tuple[int, re.Pattern[str]] | None = None

    @staticmethod
    def _front_of(tokenizer: Any) -> tuple[int, ...]:
        whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
        starts = [at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare]
        return tuple(whole[: starts[0]]) if starts else ()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_plain": None}

    @property
    def chats(self) -> bool:
        """Whether there is a chat template."""
        return getattr(self.tokenizer, "chat_template", None) is not None

    def head(self, date: str) -> tuple[int, ...]:
        """The head of a new memory: the template up to the first user's text, else what stands in front of a text."""
        if not self.chats:
            return self.front
        text = self._head([{"role": "user", "content": "a"}], date)
        return tuple(self._template_ids(text)) if text else self.front

    def prompt(
        self, content: Any, device: torch.device, *, date: str, allow_special: bool = False, query: str | None = None
    ) -> Prompt:
        """One row to read, of text, messages or ids `[T]`; `query`: what it asks, where the caller knows.

        Raises:
            InvalidInputError: nothing to read, no tokenizer, ids outside the vocabulary, a template that refuses.
        """
        if isinstance(content, str):
            text = check_text(content)
            rest = self._ids(text, allow_special, device)
            ids = self._stock(text, rest, allow_special)
            front, bare, asked = self.front, rest, text
        elif is_messages(content):
            ids, front, rest = self._conversation(content, date, allow_special, device)
            bos = getattr(self.tokenizer, "bos_token_id", None)
            bare = ids[1:] if bos is not None and len(ids) > 1 and int(ids[0]) == bos else ids
            users = [message["content"] for message in content if message["role"] == "user"]
            asked = users[-1] if users and users[-1].strip() else content[-1]["content"]
        else:
            ids = bare = rest = to_ids(content, vocabulary=self.vocabulary, device=device)
            heads = (head for head in (self.head(date), self.front) if head)
            front = next((head for head in heads if tuple(ids[: len(head)].tolist()) == head), ())
            rest = ids[len(front) :]
            found = (rest if len(rest) else ids)[-QUERY:]
            if query is None and self.tokenizer is not None:
                query = self.tokenizer.decode(found, skip_special_tokens=True)
            said = query if query is not None and query.strip() else None  # special tokens alone say nothing
            return Prompt(ids, front, rest, bare, found, said)
        asked = asked if query is None else query
        tokens = self._ids(asked, allow_special, device)[-QUERY:]
        if query is None and len(tokens) == QUERY:
            asked = self.tokenizer.decode(tokens)
        found = tokens if len(tokens) else ids[-QUERY:]
        return Prompt(ids, front, rest, bare, found, asked, chat=is_messages(content))

    def ids(self, content: Any, device: torch.device, *, date: str, allow_special: bool = False) -> Tensor:  # [T]
        """What a learned writer reads: ids without what begins a text."""
        if isinstance(content, str):
            return self._ids(check_text(content), allow_special, device)
        return self.prompt(content, device, date=date, allow_special=allow_special).bare

    def chunks(
        self, content: Any, device: torch.device, longest: int, *, date: str, allow_special: bool = False
    ) -> list[tuple[Tensor, str | None]]:
        """What a text writer encodes piece by piece: ids `[n]` of at most `longest`, and what they say.

        The pieces of a text joined are the text. Messages are written as they stand in a conversation, from behind the
        head to where the next user speaks; system messages are no memories.
        """
        if isinstance(content, str):
            return list(self._pieces(check_text(content), longest, allow_special, device))
        if is_messages(content):
            return list(self._turns(content, longest, date, allow_special, device))
        ids = to_ids(content, vocabulary=self.vocabulary, device=device)
        pieces = chunked(ids, longest, shortest=0)
        return [(ids, None if self.tokenizer is None else self.tokenizer.decode(ids)) for ids in pieces]

    def _pieces(
        self, text: str, longest: int, allow_special: bool, device: torch.device
    ) -> Iterator[tuple[Tensor, str | None]]:
        whole = self._ids(text, allow_special, device)
        if len(whole) <= longest:
            yield whole, text
            return
        held, parts = "", _parts(text)
        for part in parts:
            if held and len(self._ids((held + part).strip(), allow_special, device)) > longest:
                yield self._ids(held.strip(), allow_special, device), held
                held = ""
            held += part
            while len(self._ids(held.strip(), allow_special, device)) > longest:
                first = self._longest(held, longest, allow_special, device)
                yield self._ids(first.strip(), allow_special, device), first
                held = held[len(first) :]
        if held.strip():
            yield self._ids(held.strip(), allow_special, device), held

    def _longest(self, text: str, longest: int, allow_special: bool, device: torch.device) -> str:
        """As many of a sentence's words, or characters where it has no words, as fit."""
        low, high = 1, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._ids(text[:middle].strip(), allow_special, device)) <= longest:
                low = middle
            else:
                high = middle - 1
        space = text.rfind(" ", 1, low)
        return text[: space + 1] if space > 0 else text[:low]

    def _turns(
        self, messages: Sequence[Message], longest: int, date: str, allow_special: bool, device: torch.device
    ) -> Iterator[tuple[Tensor, str | None]]:
        """Each message's text in pieces, with what the template puts behind it."""
        check_messages(messages)
        if any(message["role"] == "system" for message in messages):
            raise InvalidInputError("a system message is no memory; write what users and assistants said")
        if messages[0]["role"] != "user":
            raise InvalidInputError(f"messages to write begin with a user's, not with one of {messages[0]['role']!r}")
        spoken = list(messages)
        if messages[-1]["role"] != "user":  # up to where the next user speaks
            spoken.append({"role": "user", "content": "a"})
        between = self._around(spoken, date, prompt=False)[1 : len(messages) + 1]
        for message, template in zip(messages, between, strict=True):
            behind = torch.tensor(self._template_ids(template), dtype=torch.long, device=device)
            text = check_text(message["content"])
            *pieces, last = self._pieces(text, max(16, longest - len(behind)), allow_special, device)
            yield from pieces
            yield torch.cat([last[0], behind]), f"{last[1]}\n"

    def _conversation(
        self, messages: Sequence[Message], date: str, allow_special: bool, device: torch.device
    ) -> tuple[Tensor, tuple[int, ...], Tensor]:
        """Ids as the chat template makes them, the head, and the rest tokenised apart."""
        check_messages(messages)
        head = self._head(messages, date) or ""
        front = self._template_ids(head)
        if not allow_special and any(self._specials(message["content"]) for message in messages):
            first = next((number for number, message in enumerate(messages) if message["role"] == "user"), 0)
            parts = self._around(messages, date, prompt=True)
            pieces = [self._template_ids(parts[0])]
            for message, part in zip(messages, parts[1:], strict=True):
                pieces += [self._text_ids(message["content"], False), self._template_ids(part)]
            ids = [token for piece in pieces for token in piece]
            rest = [token for piece in pieces[2 * first + 1 :] for token in piece]
            front = [token for piece in pieces[: 2 * first + 1] for token in piece]
        else:
            rendered = self._rendered(messages, date)
            ids, rest = self._template_ids(rendered), self._template_ids(rendered[len(head) :])
        made = (torch.tensor(one, dtype=torch.long, device=device) for one in (ids, rest))
        whole, behind = made
        return whole, tuple(front), behind

    def _head(self, messages: Sequence[Message], date: str) -> str | None:
        """What the template puts in front of the first user's text; None where no user speaks."""
        first = next((number for number, message in enumerate(messages) if message["role"] == "user"), None)
        if first is None:
            return None
        marked = [{**message} for message in messages]
        marked[first]["content"] = _MARK.format(first)
        return self._rendered(marked, date).partition(_MARK.format(first))[0]

    def _around(self, messages: Sequence[Message], date: str, prompt: bool) -> list[str]:
        """What the template puts in front of, between and behind the texts of all messages."""
        marked = [{**message, "content": _MARK.format(number)} for number, message in enumerate(messages)]
        rendered, parts = self._rendered(marked, date, prompt), []
        for number in range(len(marked)):
            part, mark, rendered = rendered.partition(_MARK.format(number))
            if not mark:
                raise InvalidInputError(f"the chat template leaves out the text of message {number}")
            parts.append(part)
        return [*parts, rendered]

    def _rendered(self, messages: Sequence[Message], date: str, prompt: bool = True) -> str:
        if not self.chats:
            raise InvalidInputError("this model's tokenizer has no chat template, so it takes text, not messages")
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=_dated(self.tokenizer.get_chat_template(), date),
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except InvalidInputError:
            raise
        except Exception as error:  # a template is a program of the model's maker, and raises what it wants to
            raise InvalidInputError(f"the chat template does not take these messages: {error}") from error
        return text

    def _stock(self, text: str, bare: Tensor, allow_special: bool) -> Tensor:
        """A text as the tokenizer itself reads it."""
        if not allow_special and self._specials(text):
            return torch.cat([_tensor(self.front, bare), bare])
        return _tensor(self.tokenizer(text)["input_ids"], bare)

    def _ids(self, text: str, allow_special: bool, device: torch.device) -> Tensor:
        return torch.tensor(self._text_ids(text, allow_special), dtype=torch.long, device=device)

    def _text_ids(self, text: str, allow_special: bool) -> list[int]:
        if self.tokenizer is None:
            raise InvalidInputError("this model has no tokenizer, so it takes token ids; attach it with a tokenizer")
        if allow_special or not self._specials(text):
            return self._template_ids(text)
        return self._as_text(text)

    def _template_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _specials(self, text: str) -> bool:
        """Whether a text holds what the tokenizer would take for one of its added tokens."""
        size = len(self.tokenizer)
        if self._added is None or self._added[0] != size:  # some have thousands, and listing them takes a while
            tokens = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
            named = [re.escape(token.content) for token in tokens if token.content.strip()]
            self._added = size, re.compile("|".join(named) or "(?!)")
        return self._added[1].search(text) is not None

    def _as_text(self, text: str) -> list[int]:
        """Ids of a text whose special tokens are text: by the same tokenizer, told of none."""
        if self._plain is None:
            from tokenizers import Tokenizer

            backend = getattr(self.tokenizer, "backend_tokenizer", None)
            if backend is None:
                raise InvalidInputError(
                    "the text holds a special token, which this tokenizer cannot read as text; take it out, or say "
                    "that it is meant with allow_special=True"
                )
            about = json.loads(backend.to_str())
            kept = [token for token in about["added_tokens"] if not token["content"].strip()]  # white space is text
            about |= {"added_tokens": kept, "truncation": None, "padding": None, "post_processor": None}
            plain = Tokenizer.from_str(json.dumps(about))  # which numbers added tokens anew
            self._plain = plain, {plain.token_to_id(token["content"]): token["id"] for token in kept}
        plain, numbers = self._plain
        return [numbers.get(token, token) for token in plain.encode(text, add_special_tokens=False).ids]


def questions(text: str) -> list[str]:
    """The sentences of a text that ask; the whole text where none does."""
    found = [part.strip() for part in _parts(text) if part.rstrip().rstrip("\"')").endswith(("?", "\uff1f", "\u061f"))]
    return found or [text]


def _dated(template: str, date: str) -> str:
    """A template for which it is another day: a `strftime_now` of its own goes before that of transformers."""
    formats = {form for _, form in re.findall(r"strftime_now\(\s*(['\"])(.*?)\1", template)}
    if not formats:
        return template
    known = json.dumps({form: Date.fromisoformat(date).strftime(form) for form in sorted(formats)})
    return "{%- macro strftime_now(form) -%}{{ (" + known + ")[form] }}{%- endmacro -%}" + template


def _parts(text: str) -> Iterator[str]:
    """A text's sentences, each with the space behind it."""
    start = 0
    for end in _SENTENCE.finditer(text):
        yield text[start : end.end()]
        start = end.end()
    if start < len(text):
        yield text[start:]
