"""lm-eval asks through a memory, and gets what our own evaluation gets."""

import importlib
import json
import random
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from remanence import Memory, MemoryModel
from remanence.checkpoints import bundled
from remanence.data.demo import demo_files
from remanence.data.episodes import unrelated
from remanence.errors import InvalidInputError, MemoryMismatchError
from remanence.evaluation.answering import answer
from remanence.evaluation.scoring import score
from remanence.texts import paragraphs_of, prompt_of, read_questions
from tests.support.tiny import decoder, tokenizer, with_memory

TASK = """
task: people
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{truth}}"
target_delimiter: " "
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 8}
filter_list: [{name: bare, filter: [{function: remove_whitespace}, {function: take_first}]}]
metric_list: [{metric: exact_match}]
"""


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "remanence.evaluation.lm_eval", raising=False)
    with pytest.raises(ImportError, match=r"pip install \"remanence\[lm-eval\]\""):
        importlib.import_module("remanence.evaluation.lm_eval")


@pytest.fixture(scope="module")
def remanence_lm() -> Any:
    pytest.importorskip("lm_eval")
    return importlib.import_module("remanence.evaluation.lm_eval").RemanenceLM


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("checkpoint")
    hf = decoder(vocab_size=300, num_hidden_layers=1, max_position_embeddings=64)
    with_memory(hf, tokenizer=tokenizer()).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def memory_file(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    model = MemoryModel.from_pretrained(checkpoint)
    memory = model.new_memory()
    model.write(memory, "Alice Brown was born in Oslo, and works as a baker in Bergen.")
    path = tmp_path_factory.mktemp("memory") / "alice.safetensors"
    memory.save(path)
    return str(path)


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one) for one in arguments]


def test_likelihoods_come_in_the_order_they_were_asked_for(
    remanence_lm: Any, checkpoint: str, memory_file: str
) -> None:
    lm = remanence_lm(checkpoint, memory=memory_file, batch_size="2")
    asked = [("Alice Brown", " was born in Oslo"), ("", "Alice"), ("She works as a baker", " in Bergen")]
    model, memory = lm.model, Memory.load(Path(memory_file))
    expected = []
    for context, continuation in asked:
        front = lm.tok_encode(context) if context else [1]
        whole = (front if context else [1]) + lm.tok_encode(continuation)
        expected += score(model, memory, [(front, whole[len(front) :])])
    got = lm.loglikelihood(requests(*asked))
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    assert [total for total, _ in got] == pytest.approx([total for total, _ in expected], abs=1e-3)
    alone = remanence_lm(checkpoint).loglikelihood(requests(*asked))
    assert abs(alone[0][0] - got[0][0]) > 1e-3


def test_a_long_context_keeps_its_end(remanence_lm: Any, checkpoint: str, memory_file: str) -> None:
    lm = remanence_lm(checkpoint, memory=memory_file)
    long = "Alice Brown was born in Oslo, " * 20
    kept = lm.tok_encode(long.rstrip())[-(lm.max_length + 1 - 1) :]
    (got, _), *_ = lm._loglikelihood_tokens([(None, lm.tok_encode(long.rstrip()), [7])])
    assert got == pytest.approx(score(lm.model, lm.memory, [(kept, [7])])[0][0], abs=1e-4)
    with pytest.raises(InvalidInputError, match="does not fit"):
        lm._loglikelihood_tokens([(None, [5], [7] * (lm.max_length + 1))])


def test_a_rolling_likelihood_counts_every_token_of_a_long_text_once(remanence_lm: Any, checkpoint: str) -> None:
    lm = remanence_lm(checkpoint, batch_size=3)
    ids = lm.tok_encode("Alice Brown was born in Oslo, and works as a baker in Bergen. " * 3)[:100]
    text = lm.tokenizer.decode(ids)
    assert lm.tok_encode(text) == ids
    first = score(lm.model, lm.memory, [([1], ids[:64])])[0][0]
    rest = score(lm.model, lm.memory, [(ids[35:64], ids[64:])])[0][0]
    assert lm.loglikelihood_rolling(requests((text,), ("Alice",)))[0] == pytest.approx(first + rest, abs=1e-3)


def test_where_there_is_no_gpu_it_runs_on_the_cpu(
    remanence_lm: Any, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert remanence_lm(checkpoint, device="cuda:0").device.type == "cpu"


def test_requests_with_other_options_are_generated_apart(remanence_lm: Any, checkpoint: str) -> None:
    lm = remanence_lm(checkpoint, batch_size=4)
    long, short = {"until": [], "max_gen_toks": 9}, {"until": [], "max_gen_toks": 2, "temperature": 0.0}
    texts = lm.generate_until(requests(("Alice", long), ("Bob Green", short), ("Carol lives in", long)))
    lengths = [9, 2, 9]
    blank = Memory(lm.model.spec)
    for text, prompt, most in zip(texts, ("Alice", "Bob Green", "Carol lives in"), lengths, strict=True):
        assert text == lm.model.generate(blank, prompt, max_new_tokens=most, do_sample=False)
    with pytest.raises(InvalidInputError, match="do not fit"):
        lm.generate_until(requests(("Alice", {"max_gen_toks": 64})))


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 8},
        {"max_tokens": 8},
        {"max_gen_toks": 8, "max_new_tokens": 2},
        {"max_gen_toks": 8, "temperature": None},
        {"max_gen_toks": 8, "temperature": 0.0, "do_sample": True},
        {"max_gen_toks": 8, "until": ["", "\n"]},
        {"max_gen_toks": 8, "until": None},
    ],
)
def test_options_of_its_own_models_are_taken(remanence_lm: Any, checkpoint: str, options: dict[str, Any]) -> None:
    lm = remanence_lm(checkpoint)
    (text,) = lm.generate_until(requests(("Alice", {"until": ["\n"], **options})))
    plain = lm.model.generate(Memory(lm.model.spec), "Alice", max_new_tokens=8, do_sample=False)
    assert text == plain.partition("\n")[0] or options.get("until", 0) is None


def test_what_does_not_go_together_is_refused(remanence_lm: Any, checkpoint: str, memory_file: str) -> None:
    with pytest.raises(InvalidInputError, match="batch_size"):
        remanence_lm(checkpoint, batch_size="auto")
    with pytest.raises(MemoryMismatchError):
        remanence_lm("tiny", memory=memory_file)


def test_a_local_task_gives_the_exact_match_of_our_own_evaluation(remanence_lm: Any, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    text, asked = demo_files()
    questions = read_questions(asked)
    model = MemoryModel.from_pretrained(bundled("tiny"))
    memory = model.new_memory()
    people = paragraphs_of(text.read_text())
    for paragraph in [*people, *islice(unrelated(random.Random(0), "\n".join(people)), 24)]:  # some are forgotten
        model.write(memory, paragraph)
    memory.save(tmp_path / "people.safetensors")
    prompts = [prompt_of(question.text) for question in questions]
    given = [answer(model, [memory], [prompt])[0] for prompt in prompts]
    right = sum(one == question.truth for one, question in zip(given, questions, strict=True)) / len(questions)
    rows = [{"prompt": p, "truth": question.truth} for p, question in zip(prompts, questions, strict=True)]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "people.yaml").write_text(TASK % (tmp_path / "people.jsonl"))
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = []
    for memory_argument in (f",memory={tmp_path / 'people.safetensors'}", ""):
        results = simple_evaluate(
            model="remanence",
            model_args=f"pretrained=tiny{memory_argument}",
            tasks=["people"],
            task_manager=tasks,
            batch_size=8,
            bootstrap_iters=0,
        )
        found.append(results["results"]["people"]["exact_match,bare"])
    assert found[0] == right < 1
    assert found[1] < right
