"""What is read as text, and what is refused in words that name it and say what to do."""

import codecs
import gzip
import io
import sys
from pathlib import Path
from typing import Any

import pytest

from remanence.errors import InvalidInputError
from remanence.texts import read_text

TEXT = "Zoë was born in Málaga.\n"
BINARY = {
    "a PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "a zip archive": b"PK\x03\x04\x14\x00\x06\x00",
    "an Office document": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "a picture (PNG)": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "a picture (JPEG)": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "a picture (GIF)": b"GIF89a plain letters follow",
    "compressed (gzip)": gzip.compress(TEXT.encode()),
    "a program (ELF)": b"\x7fELF\x02\x01\x01",
}


@pytest.fixture(params=["a file", "standard input"])
def given(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes bytes what is read, and returns its path and its name."""

    def make(content: bytes) -> tuple[Path, str]:
        if request.param == "standard input":
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
            return Path("-"), "standard input"
        (tmp_path / "notes.txt").write_bytes(content)
        return tmp_path / "notes.txt", str(tmp_path / "notes.txt")

    return make


def refused(path: Path) -> str:
    with pytest.raises(InvalidInputError) as caught:
        read_text(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("what", BINARY)
def test_read_text_refuses_what_is_no_text_by_its_first_bytes(what: str, given: Any) -> None:
    path, name = given(BINARY[what])
    assert refused(path).startswith(f"{name} is {what}")


@pytest.mark.parametrize(("content", "what"), [(b"", "empty"), (b" \n\t\r\n", "blank"), (codecs.BOM_UTF8, "blank")])
def test_read_text_refuses_what_holds_no_text(content: bytes, what: str, given: Any) -> None:
    path, name = given(content)
    assert refused(path).startswith(f"{name} is {what}: there is no text in it")


@pytest.mark.parametrize(
    ("encoding", "at", "remedy"),
    [
        ("latin-1", "byte 2 is 0xeb", "LATIN1"),
        ("utf-16-le", "byte 1 is 0x00", "UTF-16LE"),
        ("utf-16-be", "", "UTF-16BE"),
    ],
)
def test_read_text_refuses_another_encoding_with_a_remedy(encoding: str, at: str, remedy: str, given: Any) -> None:
    text = TEXT if encoding == "latin-1" else "Bob Green lives in Rome."
    path, name = given(text.encode(encoding))
    message = refused(path)
    assert message.startswith(f"{name} is not text in UTF-8") and at in message
    assert f"iconv -f {remedy} -t UTF-8" in message


def test_read_text_refuses_nul_in_a_text(given: Any) -> None:
    path, _ = given(b"Bob Green\0lives in Rome.")
    assert "byte 9 is 0x00" in refused(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_read_text_reads_what_says_how_it_is_encoded(encoding: str, given: Any) -> None:
    assert read_text(given(TEXT.encode(encoding))[0]) == TEXT


def test_read_text_reads_big_endian_text_with_a_mark(given: Any) -> None:
    assert read_text(given(codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"))[0]) == TEXT


def test_read_text_refuses_utf_16_that_was_cut(given: Any) -> None:
    path, name = given(TEXT.encode("utf-16")[:-1])
    assert refused(path).startswith(f"{name} begins as text in UTF-16 and goes on otherwise")


def test_read_text_takes_line_ends_of_other_systems_for_its_own(given: Any) -> None:
    assert read_text(given(b"Alice\r\nBrown.\rBob.\n")[0]) == "Alice\nBrown.\nBob.\n"


def test_read_text_of_a_folder_or_of_nothing_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path} is a folder; name files in it, such as {tmp_path}/*.txt"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_text(tmp_path / "none.txt")
