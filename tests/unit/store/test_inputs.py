"""Bad input is named before anything is done."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from remanence.errors import InvalidInputError, StoreError
from tests.support.stores import WRITERS, store_in

PAST = datetime.now(UTC) - timedelta(days=1)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("told", "about", "said"),
    [
        ("", {}, "empty"),
        (None, {}, "expected text"),
        ("a\ud800b", {}, "no character"),
        ("a\0b", {}, "NUL"),
        ("text", {"metadata": [1]}, "JSON object"),
        ("text", {"metadata": {"a": object()}}, "JSON"),
        ("text", {"source": 5}, "strings"),
        ("text", {"actor": ""}, "actor"),
        ("text", {"idempotency_key": "k" * 201}, "1 to 200"),
        ("text", {"expires_at": datetime(2999, 1, 1)}, "time zone"),
        ("text", {"expires_at": PAST}, "past"),
    ],
)
def test_what_cannot_be_told_is_refused(
    writer: str, told: Any, about: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with store_in(tmp_path, writer) as store:
        memory = store.memory("m", create=True)
        with pytest.raises(InvalidInputError, match=said):
            memory.tell(told, **about)
        assert memory.version == 0


@pytest.mark.parametrize("limit", [0, -1, 1.5, None, True])
def test_a_limit_is_a_number_of_rows(limit: Any, tmp_path: Path) -> None:
    with store_in(tmp_path) as store:
        memory = store.memory("m", create=True)
        for call in (memory.writes, store.memories):
            with pytest.raises(InvalidInputError, match="limit"):
                call(limit=limit)


def test_names_are_names(tmp_path: Path) -> None:
    with store_in(tmp_path) as store:
        memory = store.memory("m", create=True)
        for name in ("", " ", "x" * 201, "a\0b", 5):
            for call in (memory.fork, memory.rename):
                with pytest.raises(InvalidInputError, match="1 to 200"):
                    call(name)  # type: ignore[operator]


def test_a_store_that_was_closed_says_so(tmp_path: Path) -> None:
    with store_in(tmp_path) as store:
        memory = store.memory("m", create=True)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        memory.tell("more")
    with pytest.raises(StoreError, match="closed"):
        memory.ask("Who?")
