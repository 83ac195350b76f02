"""What a GGUF becomes is the model that it was made from, as transformers reads it too."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from remanence.bases.convert import convert
from remanence.bases.folder import silent
from remanence.errors import CheckpointError, UnsupportedModelError
from tests.support.ggufs import TEMPLATE, llama, write_gguf

IDS = torch.tensor([[5, 4, 3, 250, 17, 5, 99]])


def converted(tmp_path: Path, hf: PreTrainedModel, **options: Any) -> tuple[Path, Path]:
    """The GGUF and the folder."""
    path, folder = write_gguf(tmp_path / "a.gguf", hf, **options), tmp_path / "made"
    folder.mkdir()
    convert(path, folder, silent)
    return path, folder


def logits(hf: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return hf(IDS).logits


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own head"])
@pytest.mark.parametrize("heads", [1, 2, 4], ids="{} key heads".format)
def test_convert_gives_the_logits_of_the_model_that_was_written(tmp_path: Path, heads: int, tied: bool) -> None:
    hf = llama(tie_word_embeddings=tied, num_key_value_heads=heads)
    _, folder = converted(tmp_path, hf)
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    for parameter in hf.parameters():
        parameter.data = parameter.data.bfloat16().float()
    made = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(logits(made), logits(hf), atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("numbers", ["F32", "F16", "Q4_1", "Q8_0"])
def test_convert_reads_numbers_as_transformers_does(tmp_path: Path, numbers: str) -> None:
    path, folder = converted(tmp_path, llama(), numbers=gguf.GGMLQuantizationType[numbers])
    made = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    held, its = dict(made.named_parameters()), dict(read.named_parameters())
    assert held.keys() == its.keys()
    assert all(torch.equal(held[name], its[name].to(torch.bfloat16)) for name in held)


def test_convert_keeps_settings(tmp_path: Path) -> None:
    hf = llama(
        max_position_embeddings=77, rms_norm_eps=0.25, rope_parameters={"rope_type": "default", "rope_theta": 5e4}
    )
    _, folder = converted(tmp_path, hf)
    made = AutoModelForCausalLM.from_pretrained(folder)
    kept = ("max_position_embeddings", "rms_norm_eps", "rope_parameters", "head_dim", "tie_word_embeddings")
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    for name in (*kept, *ids):
        assert getattr(made.config, name) == getattr(hf.config, name), name
    assert [getattr(made.generation_config, name) for name in ids] == [1, 2, 0]


def test_convert_gives_the_tokenizer_with_its_template(tmp_path: Path) -> None:
    _, folder = converted(tmp_path, llama())
    made = AutoTokenizer.from_pretrained(folder)
    text = "Alice Brown was born\n  in 1987, and é works."
    assert made.decode(made(text).input_ids) == text
    assert made("Alice Brown").input_ids == made.convert_tokens_to_ids(["Alice", "ĠBrown"])
    assert made("</s><s>").input_ids == [2, 1]
    assert made.chat_template == TEMPLATE
    assert made.apply_chat_template([{"role": "user", "content": "Alice"}], tokenize=False) == "<s>Alice</s>"
    assert (made.bos_token, made.eos_token, made.pad_token) == ("<s>", "</s>", "<pad>")


def test_convert_gives_a_tokenizer_that_takes_each_digit_alone(tmp_path: Path) -> None:
    _, folder = converted(tmp_path, llama())
    pieces = AutoTokenizer.from_pretrained(folder).backend_tokenizer.pre_tokenizer.pre_tokenize_str("in  1987")
    assert [piece for piece, _ in pieces] == ["in", "ĠĠ", "1", "9", "8", "7"]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"family": "qwen2"}, UnsupportedModelError, "qwen2"),
        ({"split": "llama-bpe"}, UnsupportedModelError, "llama-bpe"),
        ({"without": ["blk.1.attn_v.weight"]}, CheckpointError, "lacks the tensor for model.layers.1.self_attn.v_proj"),
        ({"without": ["head_count"]}, CheckpointError, "lacks llama.attention.head_count"),
    ],
    ids=["family", "tokenizer", "tensor", "setting"],
)
def test_convert_says_what_it_cannot_convert(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        converted(tmp_path, llama(), **options)


def test_convert_refuses_tensors_that_llama_has_not(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"attn_q\.bias"):
        converted(tmp_path, llama(attention_bias=True))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model, but a text that is long enough to be one"])
def test_convert_refuses_what_is_no_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="no GGUF file that can be read"):
        convert(path, tmp_path, silent)


def test_convert_refuses_a_gguf_that_was_cut_short(tmp_path: Path, small_gguf: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(small_gguf.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="no GGUF file that can be read"):
        convert(path, tmp_path, silent)
