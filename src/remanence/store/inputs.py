"""What callers say besides a text, looked at before anything is done."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from remanence.errors import InvalidInputError
from remanence.memory.writes import checked

NAME = 200  # most characters of a name, a key, an actor
MOST_ROWS = 10_000_000  # of one page


def name_in(what: str, text: Any) -> str:
    """Raises InvalidInputError: it is no text, or an empty or very long one."""
    if not isinstance(text, str) or not text.strip() or len(text) > NAME or "\0" in text:
        raise InvalidInputError(f"{what} is a text of 1 to {NAME} characters, not {text!r:.80}")
    return text


def about_of(
    source: str | None,
    metadata: Mapping[str, Any] | None,
    actor: str | None,
    key: str | None,
    expires_at: datetime | None,
) -> dict[str, Any]:
    """The columns of a write that these fill.

    Raises:
        InvalidInputError: metadata is no JSON object, a name is none, or the time is past or has no zone.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidInputError(f"metadata is a JSON object, such as {{'topic': 'travel'}}, not {metadata!r:.60}")
    kept = checked(source, metadata)
    for what, text in (("actor", actor), ("idempotency_key", key)):
        if text is not None:
            name_in(what, text)
    if expires_at is not None:
        if not isinstance(expires_at, datetime) or expires_at.tzinfo is None:
            raise InvalidInputError(f"expires_at is a datetime with a time zone, not {expires_at!r}")
        if expires_at <= datetime.now(UTC):
            raise InvalidInputError(f"expires_at={expires_at.isoformat()} is past already")
    return {"source": kept["source"], "metadata": kept["metadata"], "actor": actor, "expires_at": expires_at}


def page_of(limit: Any) -> int:
    """Raises InvalidInputError: it is no number of rows."""
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MOST_ROWS:
        raise InvalidInputError(f"limit is a number of rows, at least 1, not {limit!r}")
    return limit
