"""The trained retriever of text memories: keys of chunks, questions, and keys that are made anew."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from remanence import Memory, MemoryModel
from remanence.config import RetrievalConfig, StorageConfig, Tier
from remanence.errors import CheckpointError, InvalidInputError
from remanence.memory.spec import KEYS_BY
from remanence.model.choosing import choose
from remanence.model.retriever import TokenRetriever, load_retriever, save_retriever
from remanence.model.text import TextWriter, chunks_of
from tests.support.late import FUSION, token_retriever
from tests.support.models import realigned
from tests.support.tiny import decoder, ids, with_memory, with_text

TEXTS = [ids(9 + 4 * number, seed=number) for number in range(5)]
QUESTION = ids(6, seed=40)


def keyed(seed: int = 0) -> MemoryModel:
    model = with_text(decoder())
    model.use_token_retriever(token_retriever(model, seed=seed))
    return model


def told(model: MemoryModel, texts: list[Tensor] = TEXTS, **options: object) -> Memory:
    memory = model.new_memory(**options)  # type: ignore[arg-type]
    for text in texts:
        model.write(memory, text)
    return memory


def writer_of(model: MemoryModel) -> TextWriter:
    assert isinstance(model.writer, TextWriter)
    return model.writer


def keys_of(memory: Memory) -> list[list[list[int]]]:
    return [[] if chunk.keys is None else chunk.keys.tolist() for chunk in chunks_of(memory)]


def retriever_of(model: MemoryModel) -> TokenRetriever:
    assert model.token_retriever is not None
    return model.token_retriever


@torch.no_grad()
def plain_features(model: MemoryModel, text: Tensor) -> Tensor:
    """Keys and values of layers 0 and 2 of the stock pass behind the head, by the layers' own projections."""
    seen: list[Tensor] = []
    handles = [
        getattr(model.backbone.layers[layer].self_attn, name).register_forward_hook(lambda *args: seen.append(args[2]))
        for layer in (0, 2)
        for name in ("k_proj", "v_proj")
    ]
    head = torch.tensor(model.texts.head("2024-01-01"))
    model.hf(torch.cat([head, text])[None])
    for handle in handles:
        handle.remove()
    return torch.cat([part[0, len(head) :] for part in seen], dim=-1)


def test_keys_of_a_chunk_are_the_projection_of_its_keys_and_values() -> None:
    model = keyed()
    memory, retriever = told(model), retriever_of(model)
    for chunk, text in zip(chunks_of(memory), TEXTS, strict=True):
        assert chunk.keys is not None
        assert chunk.keys.shape == (len(text), 16)
        wanted = 127 * normalize(linear(plain_features(model, text), retriever.key), dim=-1)
        assert float((chunk.keys - wanted).abs().max()) < 0.51


def test_search_scores_are_those_of_the_plain_way() -> None:
    model = keyed()
    memory, retriever = told(model), retriever_of(model)
    features = plain_features(model, QUESTION)
    asked = normalize(linear(features, retriever.query), dim=-1)
    shares = (features @ retriever.share).softmax(0)
    offset = shares @ (features @ retriever.offset + retriever.offset_bias)
    lexical = chunks_of(memory)._postings.scores(QUESTION.tolist())
    for write, score in model.search(memory, QUESTION):
        keys = normalize(linear(plain_features(model, TEXTS[write]), retriever.key), dim=-1)
        late = shares @ (asked @ keys.t()).max(dim=1).values
        logit = FUSION.lexical * lexical.get(write, 0.0) + FUSION.late * late + FUSION.bias + offset
        assert score == pytest.approx(float(logit.sigmoid()), abs=0.01)


def test_search_finds_what_was_asked_word_for_word() -> None:
    model = keyed()
    memory = told(model)
    for number, text in enumerate(TEXTS):
        assert model.search(memory, text[:7], k=1)[0][0] == number


def test_search_without_a_retriever_is_that_of_a_model_that_never_had_one() -> None:
    plain, model = with_text(decoder()), keyed()
    memory = told(model)
    expected = plain.search(told(plain), QUESTION)
    assert model.search(memory, QUESTION) != expected
    model.use_token_retriever(None)
    assert model.search(memory, QUESTION) == expected


def test_min_score_is_on_the_score_of_the_retriever() -> None:
    model = MemoryModel.attach(decoder(), min_score=0.5)
    model.use_token_retriever(token_retriever(model))
    memory = told(model)
    above = {write for write, score in model.search(memory, QUESTION) if score >= 0.5}
    made = model._reading(memory, QUESTION, None, False)
    assert {write for write, _ in made.sources[0]} == above


@pytest.mark.parametrize("tier", ["text", "host"])
def test_search_makes_keys_anew_where_there_are_none(tier: Tier) -> None:
    plain, model = with_text(decoder()), keyed()
    memory, expected = told(plain, storage=StorageConfig(tier)), told(model, storage=StorageConfig(tier))
    assert keys_of(memory) == [[]] * 5
    assert model.search(memory, QUESTION) == model.search(expected, QUESTION)
    assert keys_of(memory) == keys_of(expected)
    assert memory.spec == model.spec == expected.spec


def test_search_makes_keys_anew_from_slots_where_no_text_is_kept() -> None:
    model = MemoryModel.attach(decoder(), min_score=None, keep_text=False)
    memory = told(model)
    model.use_token_retriever(token_retriever(model))
    assert len(model.search(memory, QUESTION)) == 5
    assert keys_of(memory) == keys_of(told(model))


def test_search_makes_keys_anew_where_another_retriever_made_them() -> None:
    first, second = keyed(seed=1), keyed(seed=2)
    memory = told(first)
    name = memory.spec.retrieval
    assert name.endswith(KEYS_BY + retriever_of(first).name)
    assert second.search(memory, QUESTION) == second.search(told(second), QUESTION)
    assert memory.spec.retrieval != name
    assert keys_of(memory) == keys_of(told(second))
    second.write(memory, ids(8, seed=70))
    first.write(memory, ids(8, seed=71))
    assert keys_of(memory)[:5] == keys_of(told(first))
    assert all(keys_of(memory))


def test_write_without_a_retriever_leaves_keys_to_be_made() -> None:
    plain, model = with_text(decoder()), keyed()
    memory = told(model)
    plain.write(memory, QUESTION)
    assert [bool(keys) for keys in keys_of(memory)] == [True] * 5 + [False]
    assert model.search(memory, QUESTION, k=1)[0][0] == 5
    assert keys_of(memory) == keys_of(told(model, [*TEXTS, QUESTION]))


def test_search_makes_no_keys_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = keyed()
    memory = told(model)
    monkeypatch.setattr(TokenRetriever, "keys", lambda *_: pytest.fail("made anew"))
    model.search(memory, QUESTION)


def test_keys_that_cannot_be_made_leave_the_memory_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model = with_text(decoder()), keyed()
    memory = told(plain)
    spec, made = memory.spec, retriever_of(model).keys

    def interrupted(slots: Tensor) -> Tensor:
        if slots.shape[2] == len(TEXTS[3]):
            raise KeyboardInterrupt
        return made(slots)

    monkeypatch.setattr(retriever_of(model), "keys", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.search(memory, QUESTION)
    assert (memory.spec, keys_of(memory)) == (spec, [[]] * 5)


def test_forget_leaves_the_scores_of_a_memory_that_was_told_the_rest() -> None:
    model = keyed()
    memory, rest = told(model), told(model, TEXTS[:4])
    model.forget(memory, 4)
    assert model.search(memory, QUESTION) == model.search(rest, QUESTION)


def test_save_and_load_keep_keys(tmp_path: Path) -> None:
    model = keyed()
    memory = told(model)
    memory.save(tmp_path / "a.safetensors")
    back = Memory.load(tmp_path / "a.safetensors")
    assert (back.spec, keys_of(back)) == (memory.spec, keys_of(memory))
    assert model.search(back, QUESTION) == model.search(memory, QUESTION)
    assert model.inspect(back)["readable"]
    assert with_text(decoder()).inspect(back)["readable"]


def test_use_token_retriever_refuses_what_does_not_fit() -> None:
    model = with_text(decoder())
    other = token_retriever(model, layers=(0, 9))
    with pytest.raises(InvalidInputError, match="take the retriever that was trained for it"):
        model.use_token_retriever(other)
    with pytest.raises(InvalidInputError, match="text memories"):
        with_memory(decoder()).use_token_retriever(token_retriever(model))


def test_load_retriever_gives_back_what_was_saved(tmp_path: Path) -> None:
    retriever = retriever_of(keyed())
    save_retriever(retriever, tmp_path / "r.safetensors")
    back = load_retriever(tmp_path / "r.safetensors")
    assert (back.name, back.layers, asdict(back.fusion)) == (retriever.name, (0, 2), asdict(FUSION))
    assert retriever_of(keyed(seed=3)).name != retriever.name


def test_save_pretrained_keeps_the_retriever(tmp_path: Path) -> None:
    model = keyed()
    model.save_pretrained(tmp_path)
    back = realigned(MemoryModel.from_pretrained(tmp_path))
    assert retriever_of(back).name == retriever_of(model).name
    assert back.search(told(model), QUESTION) == model.search(told(model), QUESTION)
    assert [name for name, _ in back.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_load_retriever_names_a_file_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "r.safetensors"
    with pytest.raises(CheckpointError, match=r"r\.safetensors"):
        load_retriever(file)
    save_retriever(retriever_of(keyed()), file)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="no retriever"):
        load_retriever(file)


def test_chunks_far_below_the_best_are_not_read() -> None:
    model = keyed()
    memory = told(model)
    found = model.search(memory, QUESTION, k=len(TEXTS))
    best, second, last = (score for _, score in (found[0], found[1], found[-1]))
    assert best > second > last

    def read(**settings: float | None) -> int:
        model.config = model.config.replace(retrieval=RetrievalConfig(**settings))  # type: ignore[arg-type]
        rows, prompts = model._prompts(memory, QUESTION, False)
        return len(choose(model, writer_of(model), rows, prompts)[1][0])

    share = (second + last) / 2 / best
    assert read(min_score=0.0) == len(TEXTS) > read(min_score=0.0, near_best=share) >= 2
    assert read(min_score=0.0, near_best=1.0) == 1
    assert read(min_score=None, near_best=1.0) == len(TEXTS)
    with pytest.raises(InvalidInputError, match="share of the best"):
        RetrievalConfig(near_best=1.5)


def test_text_that_is_no_conversation_has_a_least_score_of_its_own() -> None:
    model = keyed()
    memory = told(model)
    score = model.search(memory, QUESTION, k=1)[0][1]
    settings = RetrievalConfig(min_score=score / 2, text_min_score=(1 + score) / 2)
    assert (settings.least(score, chat=True), settings.least(score, chat=False)) == (score / 2, (1 + score) / 2)
    assert RetrievalConfig(min_score=0.3).least(0.5, chat=False) == 0.3
    model.config = model.config.replace(retrieval=settings)
    rows, prompts = model._prompts(memory, QUESTION, False)
    for chat in (False, True):
        given = [replace(prompt, chat=chat) for prompt in prompts]
        assert bool(choose(model, writer_of(model), rows, given)[1][0]) == chat
    with pytest.raises(InvalidInputError, match="text_min_score"):
        RetrievalConfig(text_min_score=2)
