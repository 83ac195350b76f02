"""Scores of text behind a memory: where nothing is read, they are those of the stock model, adapters or not."""

import pytest
import torch

from remanence import MemoryModel
from remanence.config import LoraSettings
from remanence.evaluation.scoring import score_tokens
from remanence.model.lora import adapter_parameters
from tests.support import tiny
from tests.support.tiny import decoder

LORA = LoraSettings(r=2, lora_alpha=4.0, target_modules=("q_proj", "v_proj", "down_proj"))
PAIR = ([5, 6, 7, 8], [9, 10, 11])


@pytest.mark.parametrize("reads", [False, True])
def test_scores_are_the_stock_models_where_nothing_is_read(reads: bool) -> None:
    hf = decoder(vocab_size=300)
    with torch.no_grad():
        stock = hf(torch.tensor([PAIR[0] + PAIR[1]])).logits[0, 3:-1].log_softmax(-1)
    model = MemoryModel.attach(hf, tiny.tokenizer(), lora=LORA, chunk=64, min_score=None if reads else 1.0)
    for _, parameter in adapter_parameters(model.hf):
        torch.nn.init.normal_(parameter)
    memory = model.new_memory()
    model.write(memory, "Alice Brown was born in Oslo.")
    [scored], read = score_tokens(model, memory, [PAIR])
    assert read is reads
    expected = [float(stock[place, token]) for place, token in enumerate(PAIR[1])]
    assert (scored.likelihoods == pytest.approx(expected, abs=1e-5)) is not reads
