"""What a memory's file says before its tensors are read."""

import subprocess
import sys
from pathlib import Path

import pytest

from remanence.errors import MemoryFileError
from remanence.memory.envelope import canonical, read_envelope
from tests.support.kinds import told


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    told().save(tmp_path / "m")
    return tmp_path / "m"


def test_read_envelope_tells_writes_without_tensors(saved: Path) -> None:
    header = read_envelope(saved).header
    assert [(record.id, record.source, dict(record.metadata)) for record in header.writes][2] == (2, "2.md", {"n": 2})
    assert header.spec.writer == "text" and header.chunks is not None and len(header.chunks.items) == 14


def test_read_envelope_imports_no_torch(saved: Path) -> None:
    program = (
        "import pathlib, sys; from remanence.memory.envelope import read_envelope;"
        "read_envelope(pathlib.Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(saved)], check=True)


def test_read_envelope_names_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_envelope(tmp_path / "nowhere")
    (tmp_path / "m").write_bytes(b"no")
    with pytest.raises(MemoryFileError, match=f"{tmp_path / 'm'} is truncated"):
        read_envelope(tmp_path / "m")


def test_canonical_is_the_same_text_for_the_same_content() -> None:
    assert canonical({"b": 1, "a": [1.5, "é"]}) == canonical({"a": [1.5, "é"], "b": 1}) == '{"a":[1.5,"é"],"b":1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))
