"""For every command: an empty folder to work in, and a tiny random model."""

from pathlib import Path

import pytest

from remanence import MemoryModel
from remanence.cli.shared import err, out
from remanence.config import LongTermConfig
from tests.support.tiny import decoder, tokenizer, with_memory


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("checkpoint")
    hf = decoder(vocab_size=300, num_hidden_layers=1)
    with_memory(hf, tokenizer=tokenizer()).save_pretrained(path)
    return str(path)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REMANENCE_MODEL", checkpoint)
    monkeypatch.setenv("COLUMNS", "200")
    for console in (out, err):  # which keep what COLUMNS was when they were made, in whichever process that was
        monkeypatch.setattr(console, "_width", None)
    return tmp_path


@pytest.fixture(scope="session")
def longterm_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("longterm")
    hf = decoder(vocab_size=300, num_hidden_layers=1)
    with_memory(hf, tokenizer=tokenizer(), longterm=LongTermConfig(retrieved=8), retrieval_size=8).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text")
    hf = decoder(vocab_size=300, num_hidden_layers=1)
    MemoryModel.attach(hf, tokenizer()).save_pretrained(path)
    return str(path)
