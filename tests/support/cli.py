"""Commands as they are typed, in this process."""

from pathlib import Path

from typer.testing import CliRunner, Result

from remanence.cli import app


def run(*words: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, list(words), input=stdin)


def done(*words: str, stdin: str | bytes | None = None) -> str:
    result = run(*words, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: str, stdin: str | bytes | None = None) -> str:
    result = run(*words, stdin=stdin)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.output
    assert lines[0].startswith("error: ")
    return lines[0]


def a_memory(*options: str) -> Path:
    Path("notes.txt").write_text("Alice Brown was born in Oslo.\n\nShe works as a baker\nin Bergen.\n")
    done("write", "notes.mem", "notes.txt", *options)
    return Path("notes.mem")
