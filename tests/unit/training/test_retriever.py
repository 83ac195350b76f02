"""Training a retriever: it learns, a run that was cut goes on as if it had not been, and what comes out reads slots."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from remanence.errors import InvalidInputError
from remanence.memory.late import Fusion
from remanence.model.formats.adapters import file_of
from remanence.model.model import MemoryModel
from remanence.model.retriever import load_retriever
from remanence.training.tasks.retriever import RetrieverSettings, RetrieverTask, train_retriever
from remanence.training.tasks.retriever_data import Asked, RetrieverData
from remanence.training.tasks.retriever_heads import Batch, Heads, Scale, Segments, _best, standardised
from tests.support.tiny import decoder, tokenizer, with_memory, with_text

SETTINGS = RetrieverSettings(layers=(0, 1), size=8, steps=6, asked=4, seed=1)


def model() -> MemoryModel:
    words = tokenizer()
    return with_text(decoder(vocab_size=len(words)), words)


def data() -> RetrieverData:
    texts = [f"{2020 + n}; name{n % 2}: the thing number {n} is kind {7 * n}" for n in range(24)]
    questions = [Asked(f"what is thing {n}?", (n,)) for n in range(24)]
    return RetrieverData(texts, [-1] * 16 + [0] * 8, questions)


def segments(lengths: list[int], seed: int, features: int = 6) -> Segments:
    rows = torch.randn(sum(lengths), features, generator=torch.Generator().manual_seed(seed))
    return Segments(rows, torch.tensor([0, *lengths]).cumsum(0))


def batch() -> Batch:
    asked, held = segments([3, 1, 4], 1), segments([5, 2, 7, 1, 3], 2)
    right = torch.zeros(3, 5, dtype=torch.bool)
    right[[0, 1, 2], [0, 3, 2]] = True
    kept = torch.tensor([True, False, True, True, True, True, True, True])
    return Batch(asked, held, kept, torch.rand(3, 5), right, torch.tensor([False, False, True]))


def test_heads_score_as_the_retriever_that_they_become() -> None:
    heads, made = Heads(6, 4, 0.0).eval(), batch()
    torch.nn.init.normal_(heads.share.weight)
    torch.nn.init.normal_(heads.offset.weight)
    scale = Scale(torch.randn(6), torch.rand(6) + 0.5)
    retriever = heads.retriever((0,), scale, scale)
    everything = made._replace(kept=torch.ones(8, dtype=torch.bool))
    with torch.no_grad():
        scores = heads.scores(everything)
    rows = [rows * scale.spread + scale.mean for rows in made.questions.rows.split([3, 1, 4])]
    chunks = [rows * scale.spread + scale.mean for rows in made.chunks.rows.split([5, 2, 7, 1, 3])]
    for row, features in enumerate(rows):
        query = retriever.asked(features)
        for column, held in enumerate(chunks):
            keys = torch.nn.functional.normalize(held @ retriever.key.t() + retriever.key_bias, dim=-1)
            late = float(query.shares @ (query.vectors.float() / 127 @ keys.t()).amax(1))
            lexical = None if made.silent[row] else float(made.lexical[row, column])
            got = torch.tensor(query.fused(lexical, late)).logit()
            assert float(got) == pytest.approx(float(scores[row, column]), abs=0.2)
    assert retriever.fusion == Fusion(*heads.fusion.tolist())


def test_best_is_the_likest_key_of_each_chunk() -> None:
    queries, held = segments([4], 3).rows, segments([5, 2, 7], 4)
    exact = (queries.bfloat16().float() @ held.rows.bfloat16().float().t()).split([5, 2, 7], dim=1)
    wanted = [part.argmax(1) + start for part, start in zip(exact, (0, 5, 7), strict=True)]
    assert _best(queries, held.rows, held.starts).tolist() == torch.stack(wanted, 1).tolist()


def test_loss_falls_where_right_chunks_score_higher() -> None:
    heads, made = Heads(6, 4, 0.0), batch()
    before = float(heads.loss(made).detach())
    raised = made._replace(lexical=made.lexical + made.right.float(), silent=torch.zeros(3, dtype=torch.bool))
    plain = made._replace(silent=torch.zeros(3, dtype=torch.bool))
    assert float(heads.loss(raised).detach()) < float(heads.loss(plain).detach())
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        loss = heads.loss(made)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.7 * before


def test_scale_loses_little_within_four_spreads() -> None:
    rows = torch.randn(200, 5) * 3 + 7
    scale = Scale.of(rows)
    exact = (rows - scale.mean) / scale.spread
    assert float((standardised(scale.reduced(rows)) - exact).abs().max()) < 0.02


def test_train_retriever_that_was_cut_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = train_retriever(model(), data(), tmp_path / "whole", SETTINGS)
    for step in (1, 2, 3):
        assert train_retriever(model(), data(), tmp_path / "cut", SETTINGS, minutes=0) is None
        assert (tmp_path / f"cut/checkpoint-{step}").is_dir()
    told: list[tuple[str, int, int]] = []
    end = train_retriever(model(), data(), tmp_path / "cut", SETTINGS, told=lambda *step: told.append(step))
    assert whole is not None
    assert end is not None
    assert end.name == whole.name
    assert told == [("questions", 24, 24), ("texts", 24, 24)]
    assert load_retriever(tmp_path / "cut" / file_of("retriever")).name == whole.name
    (entry,) = (one for one in json.loads((tmp_path / "cut/curve.json").read_text())["log"] if "train_loss" in one)
    assert entry["step"] == 6 and entry["found"] == 0.0


def test_train_retriever_makes_one_that_the_model_takes(tmp_path: Path) -> None:
    reading = model()
    retriever = train_retriever(reading, data(), tmp_path, SETTINGS)
    reading.use_token_retriever(retriever)
    memory = reading.new_memory()
    for text in data().texts[:5]:
        reading.write(memory, text)
    assert len(reading.search(memory, "what is thing 3?")) == 5


def test_train_retriever_refuses_the_folder_of_another_run(tmp_path: Path) -> None:
    train_retriever(model(), data(), tmp_path, SETTINGS, minutes=0)
    with pytest.raises(InvalidInputError, match="name another folder"):
        train_retriever(model(), data(), tmp_path, replace(SETTINGS, steps=7))


def test_train_retriever_refuses_what_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="questions"):
        train_retriever(model(), replace(data(), questions=[]), tmp_path, SETTINGS)
    words = tokenizer()
    learned = with_memory(decoder(vocab_size=len(words)))
    learned.texts = with_text(decoder(vocab_size=len(words)), words).texts
    with pytest.raises(InvalidInputError, match="text memory"):
        train_retriever(learned, data(), tmp_path / "learned", SETTINGS)


def test_what_is_held_out_is_never_in_a_batch_and_the_best_is_kept(tmp_path: Path) -> None:
    held = frozenset({3, 4, 5, 20})
    task = RetrieverTask(model(), replace(data(), held_out=held), tmp_path, SETTINGS, None)
    assert len(task._checked) == len(held)
    for seed in range(20):
        for numbers, texts in (task._passages(random.Random(seed)), task._conversation(random.Random(seed))):
            assert not held & set(texts) and not held & {task.data.questions[number].texts[0] for number in numbers}
    first = task.found()
    assert 0 < first <= 1
    task.check()
    assert task.place() == {"best": first} and task.figures() == {"found": round(first, 4)}
    kept = load_retriever(tmp_path / file_of("retriever")).name
    task.best = 2.0  # nothing is better
    task.trained.fusion.data += 1
    task.check()
    assert load_retriever(tmp_path / file_of("retriever")).name == kept != task.retriever().name
