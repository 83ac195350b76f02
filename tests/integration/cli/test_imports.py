"""What is wrong is said at once: no command waits for torch to import before it says so, and libraries keep quiet."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import a_memory

HEAVY = ("torch", "transformers", "peft", "matplotlib", "torchao")
RUN = f"""
import json, sys
from typer.testing import CliRunner
from remanence.cli import app
made = []
for words in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, words, input="")
    made.append([words, result.exit_code, [name for name in {HEAVY} if name in sys.modules]])
print(json.dumps(made))
"""
AT_ONCE = [
    ["--help"],
    ["--version"],
    ["write", "--help"],
    ["eval", "--help"],
    ["show", "notes.mem"],
    ["show", "notes.mem", "--json", "--all"],
]
REFUSED = [
    ["setup", "none"],
    ["setup", "--check"],
    ["setup", "--from", "none"],
    ["show", "none.mem"],
    ["show", "."],
    ["show", "notes.txt"],
    ["ask", "none.mem", "Who?"],
    ["ask", ".", "Who?"],
    ["ask", "notes.txt", "Who?"],
    ["ask", "notes.mem", " "],
    ["search", "none.mem", "Who?"],
    ["forget", "none.mem", "0"],
    ["forget", "notes.mem", "0"],
    ["chat", "."],
    ["chat", "notes.txt"],
    ["write", "notes.mem", "none.txt"],
    ["write", "notes.mem", "."],
    ["write", "notes.mem", "paper.pdf"],
    ["write", "notes.mem", "-"],
    ["write", ".", "notes.txt"],
    ["write", "notes.txt", "notes.txt"],
    ["write", "notes.mem", "notes.txt", "--metadata", "topic"],
    ["write", "notes.mem", "notes.txt", "--tier", "disk"],
    ["demo", "none.txt"],
    ["demo", "--questions", "none.tsv"],
    ["train", "none.py"],
    ["eval", "nothing"],
]


def test_commands_that_need_no_model_and_those_that_refuse_import_nothing_heavy() -> None:
    a_memory()
    Path("paper.pdf").write_bytes(b"%PDF-1.7\n")
    words = json.dumps([*AT_ONCE, *REFUSED])
    out = subprocess.run([sys.executable, "-c", RUN, words], capture_output=True, text=True, check=True)
    made = json.loads(out.stdout)
    assert made == [[one, 0, []] for one in AT_ONCE] + [[one, 2, []] for one in REFUSED]


@pytest.mark.slow
@pytest.mark.parametrize("code", ["from remanence import MemoryModel", "import remanence.model.lora, peft"])
def test_libraries_do_not_report_what_they_could_not_load(code: str) -> None:
    pytest.importorskip("torchao")
    done = subprocess.run([sys.executable, "-c", f"{code}; import torchao"], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_other_reports_of_the_same_libraries_are_shown() -> None:
    code = "import logging, remanence; [logging.getLogger(n).warning('x') for n in ('torchao', 'torch.utils._pytree')]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["x", "x"]
