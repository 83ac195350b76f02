"""Python in the README and in docs/ runs as it stands there, block after block, but for what says why it does not."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^(?P<mark><!-- not run: .+ -->\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Lines and texts of the blocks that are run."""
    text = page.read_text(encoding="utf-8")
    found = [block for block in BLOCK.finditer(text) if block["mark"] is None]
    return [(text.count("\n", 0, block.start("code")), block["code"]) for block in found]


PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if blocks(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_of_a_page_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if any('"smollm2"' in code for _, code in blocks(page)):
        request.getfixturevalue("smollm2")
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, page, "exec"), known)  # a traceback then names the line of the page


def test_the_quick_start_is_run() -> None:
    assert ROOT / "README.md" in PAGES
