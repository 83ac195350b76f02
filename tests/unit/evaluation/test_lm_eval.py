"""lm-eval asks through a memory, and gets what our own evaluation gets; without one, what its own model gets."""

import importlib
import json
import re
import sys
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch

from remanence import Memory, MemoryModel
from remanence.errors import InvalidInputError, MemoryMismatchError
from remanence.evaluation.asking import Asking, record_of
from remanence.evaluation.columns import column_of
from remanence.evaluation.passages import read_passages
from remanence.evaluation.scoring import score_tokens
from remanence.evaluation.told import Told
from tests.support import asked
from tests.support.tiny import decoder, tokenizer, with_memory

PAIRS = [("Alice Brown", " was born in Oslo"), ("", "Alice"), ("She works as a baker", " in Bergen")]


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "remanence.evaluation.lm_eval", raising=False)
    with pytest.raises(ImportError, match=r"pip install \"remanence\[lm-eval\]\""):
        importlib.import_module("remanence.evaluation.lm_eval")


@pytest.fixture(scope="module")
def ours() -> Any:
    pytest.importorskip("lm_eval")
    return importlib.import_module("remanence.evaluation.lm_eval")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Text slots, whose decoder lm-eval's own model loads as well."""
    path = tmp_path_factory.mktemp("text")
    hf = decoder(vocab_size=300, num_hidden_layers=2, max_position_embeddings=1200)
    MemoryModel.attach(hf, tokenizer()).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("learned")
    hf = decoder(vocab_size=300, num_hidden_layers=1, max_position_embeddings=128)
    with_memory(hf, tokenizer=tokenizer()).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def memories(text: str, learned: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By checkpoint, a memory that was told the passages of the SQuAD file."""
    files = {}
    for checkpoint in (text, learned):
        model = MemoryModel.from_pretrained(checkpoint)
        memory = model.new_memory()
        for number in range(len(asked.NAMES)):
            model.write(memory, asked.passage(number))
        files[checkpoint] = str(tmp_path_factory.mktemp("memory") / "told.mem")
        memory.save(files[checkpoint])
    return files


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    kind = "generate_until"  # lm-eval reads nothing from it
    return [Instance(kind, {}, arguments=one, idx=0, metadata=("", number, 1)) for number, one in enumerate(arguments)]


@pytest.mark.parametrize("kind", ["text", "learned"])
def test_likelihoods_are_our_own_in_the_order_they_were_asked_for(
    kind: str, ours: Any, memories: dict[str, str], request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(kind)
    lm = ours.RemanenceLM(checkpoint, memory=memories[checkpoint], batch_size="2")
    model, memory = MemoryModel.from_pretrained(checkpoint), Memory.load(Path(memories[checkpoint]))
    expected = []
    for context, continuation in PAIRS:
        front = lm.tok_encode(context) if context else [1]
        [one], _ = score_tokens(model, memory, [(front, lm.tok_encode(continuation))])
        expected.append((sum(one.likelihoods), all(one.greedy)))
    got = lm.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    assert [total for total, _ in got] == pytest.approx([total for total, _ in expected], abs=1e-3)
    alone = ours.RemanenceLM(checkpoint).loglikelihood(requests(*PAIRS), disable_tqdm=True)
    assert abs(alone[0][0] - got[0][0]) > 1e-3


def test_without_a_memory_it_is_lm_evals_own_model(ours: Any, text: str) -> None:
    own = ours.HFLM(pretrained=text, device="cpu", dtype="float32", batch_size=2)
    lm = ours.RemanenceLM(text, batch_size=2)
    greedy = {"until": [], "max_gen_toks": 9}
    rolling, generating = (
        requests(("Alice Brown was born in Oslo. " * 20,)),
        requests(("Alice", greedy), ("Bob", greedy)),
    )
    for what, given in (("loglikelihood", requests(*PAIRS)), ("loglikelihood_rolling", rolling)):
        expected, got = (torch.tensor(getattr(one, what)(given, disable_tqdm=True)) for one in (own, lm))
        assert torch.allclose(got, expected, atol=1e-3)
    assert lm.generate_until(generating) == own.generate_until(generating)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 9},
        {"max_gen_toks": 9, "temperature": None},
        {"max_gen_toks": 9, "temperature": 0.0, "do_sample": True},
        {"max_gen_toks": 9, "until": ["", "\n"]},
    ],
)
def test_options_that_tasks_give_otherwise_mean_the_same(options: dict[str, Any], ours: Any, text: str) -> None:
    lm, plain = ours.RemanenceLM(text), {"until": ["\n"], "max_gen_toks": 9}
    said = [lm.generate_until(requests(("Alice", one))) for one in (plain, {"until": ["\n"], **options})]
    assert said[0] == said[1]


@pytest.mark.parametrize("kind", ["text", "learned"])
def test_generation_goes_on_behind_the_memory(
    kind: str, ours: Any, memories: dict[str, str], request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(kind)
    lm = ours.RemanenceLM(checkpoint, memory=memories[checkpoint], batch_size=4)
    prompts = ["Where was Ada born?", "Who keeps bees near the harbour?"]
    long, short = {"until": [], "max_gen_toks": 9}, {"until": [], "max_gen_toks": 2, "temperature": 0.0}
    texts = lm.generate_until(requests((prompts[0], long), (prompts[1], short), (prompts[1], long)))
    expected = [
        lm.reader.generate(lm.memory, prompt, max_new_tokens=most, do_sample=False)
        for prompt, most in ((prompts[0], 9), (prompts[1], 2), (prompts[1], 9))
    ]
    assert texts == expected
    assert texts[0] != ours.RemanenceLM(checkpoint).generate_until(requests((prompts[0], long)))[0]
    stop = expected[2][3:5]
    assert lm.generate_until(requests((prompts[1], {**long, "until": [stop]}))) == [expected[2].partition(stop)[0]]
    with pytest.raises(AssertionError, match="must be less than"):
        lm.generate_until(requests(("Alice", {"max_gen_toks": lm.max_length})))


def test_a_long_context_keeps_its_end_and_fits_behind_what_is_retrieved(ours: Any, tmp_path: Path) -> None:
    model = MemoryModel.attach(decoder(vocab_size=300, max_position_embeddings=160), tokenizer())
    model.save_pretrained(tmp_path / "small")
    memory = model.new_memory()
    for number in range(4):
        model.write(memory, asked.passage(number))
    memory.save(tmp_path / "told.mem")
    lm = ours.RemanenceLM(str(tmp_path / "small"), memory=str(tmp_path / "told.mem"))
    assert lm.reader.config.retrieval.slots == 80 and lm.max_length == 160 - 80
    long = lm.tok_encode("Where was Ada born? " * 20)
    [(got, _)] = lm._loglikelihood_tokens([(None, long, [7])])
    [expected], read = score_tokens(lm.reader, lm.memory, [(long[-lm.max_length :], [7])])
    assert read and got == pytest.approx(sum(expected.likelihoods), abs=1e-4)
    with pytest.raises(InvalidInputError, match="does not fit"):
        lm._loglikelihood_tokens([(None, [5], [7] * (lm.max_length + 1))])


def test_where_there_is_no_gpu_it_runs_on_the_cpu(ours: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert ours.RemanenceLM(text, device="cuda:0").device.type == "cpu"


def test_what_does_not_go_together_is_refused(ours: Any, text: str, learned: str, memories: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError, match="batch_size"):
        ours.RemanenceLM(text, batch_size="auto")
    for unknown in ("memroy", "peft"):
        with pytest.raises(InvalidInputError, match=f"takes no {unknown}"):
            ours.RemanenceLM(text, **{unknown: "notes.mem"})
    with pytest.raises(MemoryMismatchError):
        ours.RemanenceLM(learned, memory=memories[text])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    pages = [
        " = Ada = \n\n " + asked.passage(0) + "\n\n = = Early life = = \n\n" + asked.passage(1) * 40,
        " = Bert = \n",
    ]
    (folder / "wiki.txt").write_text("\n" + "\n".join(pages))
    articles = json.loads(asked.squad_file(folder).read_text())["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    split = [{"title": "Five", "paragraphs": paragraphs[:5]}, {"title": "One", "paragraphs": paragraphs[5:]}]
    (folder / "two.json").write_text(json.dumps({"data": split}))
    return {"squad": str(folder / "two.json"), "wikitext": str(folder / "wiki.txt")}


def evaluated(ours: Any, task: str, data: dict[str, str], checkpoint: str, memory: str | None) -> Any:
    """What lm-eval reports of a task of ours, and its samples."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    made = simple_evaluate(
        model="remanence",
        model_args={"pretrained": checkpoint, "memory": memory},
        tasks=[task],
        task_manager=TaskManager(include_path=str(ours.TASKS), include_defaults=False, metadata=data),
        batch_size=4,
        bootstrap_iters=0,
    )
    return {name.partition(",")[0]: value for name, value in made["results"][task].items()}, made["samples"][task]


@pytest.mark.parametrize("told", [True, False], ids=["with a memory", "without"])
@pytest.mark.parametrize("kind", ["text", "learned"])
class TestOurTasks:
    """Each gives the figures that our own evaluations give."""

    @pytest.fixture
    def setting(
        self, kind: str, told: bool, memories: dict[str, str], request: pytest.FixtureRequest
    ) -> tuple[str, str | None, MemoryModel, Memory]:
        checkpoint = request.getfixturevalue(kind)
        model = MemoryModel.from_pretrained(checkpoint)
        memory = Memory.load(Path(memories[checkpoint])) if told else Memory(model.spec)
        return checkpoint, memories[checkpoint] if told else None, model, memory

    def test_squad_counts_answers_as_we_do(
        self, ours: Any, data: dict[str, str], setting: Any, told: bool, kind: str
    ) -> None:
        checkpoint, file, model, memory = setting
        found, samples = evaluated(ours, "remanence_squad", data, checkpoint, file)
        passages = read_passages(Path(data["squad"]))
        held = Told(model, [one.text for one in passages])
        if told:
            held._written = memory, [record.id for record in memory.writes]
        column = column_of({"text": "slots", "learned": "pool"}[kind] if told else "nothing")
        records = []
        for question in (question for one in passages for question in one.questions):
            said = Asking(model)(column, held, question.text.removeprefix("Question: ").removesuffix(" Answer:"))
            records.append(record_of(said, column, held, question.truths, []))
        assert len(samples) == len(records) == 12
        for metric in ("hit", "exact_match", "f1"):
            assert found[metric] == pytest.approx(sum(record[metric] for record in records) / len(records))

    def test_squad_choice_takes_the_most_probable_answer(self, ours: Any, data: dict[str, str], setting: Any) -> None:
        checkpoint, file, model, memory = setting
        found, samples = evaluated(ours, "remanence_squad_choice", data, checkpoint, file)
        encode, right = model.tokenizer, []
        for sample in samples:
            doc, likelihoods = sample["doc"], []
            context = encode(doc["prompt"])["input_ids"]
            for choice in doc["choices"]:
                rest = encode(f"{doc['prompt']} {choice}")["input_ids"][len(context) :]
                [one], _ = score_tokens(model, memory, [(context, rest)])
                likelihoods.append(sum(one.likelihoods))
            theirs = [pair[0] for pair in sample["filtered_resps"]]
            assert theirs == pytest.approx(likelihoods, abs=1e-3)
            right.append(max(range(4), key=lambda place: likelihoods[place]) == doc["right"])
        assert len(samples) == 10 and found["acc"] == pytest.approx(sum(right) / 10)

    def test_wikitext_counts_words_and_bytes(self, ours: Any, data: dict[str, str], setting: Any) -> None:
        checkpoint, file, model, memory = setting
        found, samples = evaluated(ours, "remanence_wikitext", data, checkpoint, file)
        pages = [sample["doc"]["page"] for sample in samples]
        assert [page.split(" = ")[1] for page in pages] == ["Ada", "Bert"]
        most, total = ours.RemanenceLM(checkpoint, memory=file).max_length, 0.0
        for page in pages:
            ids = [1, *model.tokenizer(page)["input_ids"]]
            for start in range(0, len(ids) - 1, most):
                # the last window is as long as the others, and scores what is left
                end = min(start + most, len(ids) - 1)
                context, rest = ids[max(0, end - most) : start + 1], ids[start + 1 : end + 1]
                [one], _ = score_tokens(model, memory, [(context, rest)])
                total += sum(one.likelihoods)
        words, size = sum(len(re.split(r"\s+", page)) for page in pages), sum(len(page.encode()) for page in pages)
        assert found["byte_perplexity"] == pytest.approx(exp(-total / size), rel=1e-4)
        assert found["word_perplexity"] == pytest.approx(exp(-total / words), rel=1e-3)


def test_a_task_without_its_file_says_what_to_name(ours: Any, text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"--metadata '\{\"squad\": \"FILE\"\}'"):
        evaluated(ours, "remanence_squad", {}, text, None)
