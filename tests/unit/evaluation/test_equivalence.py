"""The command that checks a checkpoint: slots that hold the layer inputs of a text are that text."""

import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from remanence.evaluation import equivalence
from remanence.model.backbone import Backbone
from tests.support import tiny


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """The exit status, or the message of one that stops."""
    monkeypatch.setattr(sys, "argv", ["equivalence", *arguments])
    try:
        return equivalence.main()
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny.decoder("mistral", vocab_size=300, sliding_window=128).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("with_tokenizer", [True, False], ids=["text", "random ids"])
@pytest.mark.parametrize("tokens", [None, 1, 50])
def test_a_good_checkpoint_is_equal(
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    with_tokenizer: bool,
    tokens: int | None,
) -> None:
    if with_tokenizer:
        tiny.tokenizer().save_pretrained(saved)
    assert run(monkeypatch, str(saved), *([] if tokens is None else ["--tokens", str(tokens)])) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(rf"max difference \d\.\d\de[-+]\d\d over {tokens or 64} tokens: equal", last)


def test_a_wrong_rotation_is_found(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = Backbone.rotary
    monkeypatch.setattr(Backbone, "rotary", lambda self, positions, *rest: right(self, positions + 1, *rest))
    assert run(monkeypatch, str(saved)) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith(" over 64 tokens: different")


def test_a_result_that_is_not_a_number_is_different(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "equivalence", lambda *_: float("nan"))
    assert run(monkeypatch, str(saved)) == 1


def test_what_cannot_be_checked_says_why(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=2)).save_pretrained(other)
    assert "'gpt2'" in str(run(monkeypatch, str(other)))
    assert "has no config.json" in str(run(monkeypatch, str(other / "nowhere")))
    assert "sliding window of 128" in str(run(monkeypatch, str(saved), "--tokens", "100"))
    assert run(monkeypatch, str(saved), "--tokens", "0") == 2


def test_the_text_repeats_until_it_is_long_enough(saved: Path) -> None:
    tiny.tokenizer().save_pretrained(saved)
    ids = equivalence._tokens(saved, 300, 5000)
    assert ids.shape == (5000,) and not torch.equal(ids[:100], ids[100:200])
