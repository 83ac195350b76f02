"""Every command works from end to end, on a tiny random model; what goes wrong is one line and exit code 2."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remanence import Memory, MemoryModel, __version__
from remanence.checkpoints import bundled
from remanence.cli.shared import out
from remanence.errors import CorruptMemoryError
from remanence.kernels import onednn
from remanence.kernels.onednn import OneDnnLinear
from remanence.model.read import Answer
from tests.support.cli import a_memory, done, refused, run
from tests.support.tiny import decoder, tokenizer, with_memory

COMMANDS = [
    ["setup"],
    ["demo"],
    ["write"],
    ["show"],
    ["forget"],
    ["ask"],
    ["search"],
    ["chat"],
    ["train"],
]
RECIPE = """
def train(output, *, resume=False, minutes=None, steps=5):
    output.mkdir(parents=True)
    (output / "made").write_text(f"{resume} {minutes} {steps!r}")
    return output
"""


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_help_teaches_by_example(command: list[str]) -> None:
    text = done(*command, "--help")
    assert "Examples:" in text
    assert " ".join(["remanence", *command]) in text.partition("Examples:")[2]


def test_kernels_that_torch_keeps_are_few_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    a_memory()
    assert (os.environ["LRU_CACHE_CAPACITY"], os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) == ("7", "64")


def test_version_is_the_packages() -> None:
    assert done("--version").split() == ["remanence", __version__]


def test_module_is_the_command() -> None:
    out = subprocess.run([sys.executable, "-m", "remanence", "--version"], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["remanence", __version__]


def test_write_makes_a_memory_with_one_write_per_paragraph() -> None:
    assert Memory.load(a_memory()).write_count == 2


def test_write_goes_on_where_the_memory_stands_and_reads_standard_input() -> None:
    path = a_memory()
    assert "1 written, 3 writes in all" in done("write", str(path), "-", stdin="Bob Green lives in Paris.\n")
    assert json.loads(done("write", str(path), "notes.txt", "notes.txt", "--json")) == {
        "memory": "notes.mem",
        "written": 4,
        "writes": 7,
    }
    assert Memory.load(path).write_count == 7


def test_write_whole_makes_one_write_of_a_file() -> None:
    Path("short.txt").write_text("One.\n\nTwo.\n\nThree.\n")
    done("write", "whole.mem", "short.txt", "--whole")
    assert Memory.load("whole.mem").write_count == 1


def test_write_keeps_where_a_text_is_from_and_what_else_is_said_of_it() -> None:
    path = a_memory("--metadata", "topic=travel", "--metadata", "note=a=b")
    done("write", str(path), "-", stdin="Bob Green lives in Paris.")
    done("write", str(path), "notes.txt", "-", "--source", "mail of 3 May", "--whole", stdin="Bob Green lives in Rome.")
    found = [(record.source, record.metadata) for record in Memory.load(path).writes]
    about = {"topic": "travel", "note": "a=b"}
    assert found == [("notes.txt", about)] * 2 + [(None, {})] + [("mail of 3 May", {})] * 2
    for wrong in ("topic", "=travel"):
        assert "KEY=VALUE" in refused("write", str(path), "notes.txt", "--metadata", wrong)


@pytest.mark.parametrize("problem", ["no file", "no text", "a folder", "a failing write"])
def test_memory_file_is_unchanged_when_a_write_fails(problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_memory()
    before = path.read_bytes()
    files = {"no file": "none.txt", "no text": "empty.txt", "a folder": ".", "a failing write": "notes.txt"}
    Path("empty.txt").write_text("\n")
    if problem == "a failing write":
        calls: list[str] = []
        whole = MemoryModel.write

        def failing(self: MemoryModel, memory: Any, content: Any, **kwargs: Any) -> Any:
            calls.append(content)
            if len(calls) == 3:
                raise CorruptMemoryError("the write made slots that are not finite")
            return whole(self, memory, content, **kwargs)

        monkeypatch.setattr(MemoryModel, "write", failing)
    refused("write", str(path), *(["notes.txt"] if problem != "no text" else []), files[problem])
    assert path.read_bytes() == before
    assert [file.name for file in Path().iterdir() if "partial" in file.name] == []


def test_no_memory_is_made_when_its_first_write_fails() -> None:
    refused("write", "new.mem", "-", stdin="\n")
    assert not Path("new.mem").exists()


def test_ask_prints_the_answer_and_leaves_the_memory_alone() -> None:
    path = a_memory()
    before = path.read_bytes()
    asked = json.loads(done("ask", str(path), "Where was Alice Brown born?", "--max-new-tokens", "4", "--json"))
    assert asked["question"] == "Where was Alice Brown born?"
    assert (asked["found"], asked["sources"]) == (True, [])  # a pool is read as a whole
    assert done("ask", str(path), asked["question"], "--max-new-tokens", "4").strip("\n") == asked["answer"]
    assert path.read_bytes() == before


def test_ask_reads_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_memory()

    def ask(self: MemoryModel, memory: Memory, question: str, *, max_new_tokens: int) -> Answer:
        return Answer(f"{memory.write_count} writes, {question}, {max_new_tokens}", True, [])

    monkeypatch.setattr(MemoryModel, "ask", ask)
    assert done("ask", str(path), "Who?", "--max-new-tokens", "7").strip() == "2 writes, Who?, 7"


def test_ask_names_the_writes_that_it_read(text_checkpoint: str) -> None:
    model = ["--model", text_checkpoint]
    path = str(a_memory(*model))
    asked = json.loads(done("ask", path, "Where was Alice Brown born?", "--json", *model))
    assert asked["found"] is True
    assert (asked["sources"][0]["id"], asked["sources"][0]["source"]) == (0, "notes.txt")
    assert asked["sources"][0]["text"] == "Alice Brown was born in Oslo."
    text = done("ask", path, "Where was Alice Brown born?", "--sources", *model)
    assert "notes.txt" in text and "Alice Brown was born" in text
    assert "notes.txt" not in done("ask", path, "Where was Alice Brown born?", *model)
    assert "Nothing was read" in done("ask", path, "Zyx?", "--sources", *model)
    assert "was not told this" in run("ask", path, "Zyx?", *model).stderr
    assert json.loads(done("ask", path, "Zyx?", "--json", *model))["found"] is False


def test_search_lists_the_best_writes_first(text_checkpoint: str) -> None:
    model = ["--model", text_checkpoint]
    path = str(a_memory(*model))
    found = json.loads(done("search", path, "Who works as a baker?", "--json", *model))["writes"]
    assert [one["id"] for one in found] == [1, 0]
    assert found[0]["score"] > found[1]["score"]
    assert len(json.loads(done("search", path, "baker", "--count", "1", "--json", *model))["writes"]) == 1
    assert "She works as a baker" in done("search", path, "Who works as a baker?", *model)


def test_search_needs_a_retriever_and_forget_text_slots() -> None:
    path = str(a_memory())
    assert "no retriever" in refused("search", path, "Who?")
    assert "no write can be taken out" in refused("forget", path, "0")


def test_forget_takes_a_write_out(text_checkpoint: str) -> None:
    model = ["--model", text_checkpoint]
    path = str(a_memory(*model))
    assert "write 0 forgotten, 1 left" in done("forget", path, "0", *model)
    assert [one["id"] for one in json.loads(done("show", path, "--json"))["writes"]] == [1]
    assert "has no write 0" in refused("forget", path, "0", *model)
    made = json.loads(done("forget", path, "1", "--json", *model))
    assert (made["forgotten"], made["exact"], made["writes"]) == (1, True, 0)


@pytest.mark.skipif(not onednn.available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize(
    ("words", "optimized"),
    [("ask notes.mem Who?", [True]), ("show notes.mem", []), ("show notes.mem --model {checkpoint}", [False])],
)
def test_commands_that_compute_use_the_kernels_for_a_cpu(
    words: str, optimized: list[bool], checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_memory()
    loaded, load = [], MemoryModel.from_pretrained
    monkeypatch.setattr(MemoryModel, "from_pretrained", lambda *given: loaded.append(load(*given)) or loaded[-1])
    done(*words.format(checkpoint=checkpoint).split())
    assert [type(model.hf.lm_head) is OneDnnLinear for model in loaded] == optimized


def test_show_tells_sizes_of_a_pool_and_its_writes() -> None:
    path = a_memory()
    details = json.loads(done("show", str(path), "--json"))
    memory = Memory.load(path)
    assert details["writes"] == [
        {
            "id": record.id,
            "time": record.time.isoformat(timespec="seconds"),
            "source": "notes.txt",
            "tokens": record.tokens,
            "metadata": {},
            "text": None,
        }
        for record in memory.writes
        if record.time is not None
    ]
    assert len(details.pop("writes")) == 2
    assert details == {
        "file": "notes.mem",
        "file_bytes": path.stat().st_size,
        "writer": "learned",
        "model_name": os.environ["REMANENCE_MODEL"],
        "model": memory.spec.model,
        "dtype": "float32",
        "layers": 1,
        "slots": 24,
        "slots_per_write": 6,
        "tier": "device",
        "int8": False,
        "bytes": memory.nbytes,
        "write_count": 2,
    }
    assert "slots per layer (N)" in done("show", str(path))


def test_show_tells_chunks_of_a_text_memory_and_its_texts(
    text_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out, "_width", 300)  # so that no line is folded, however deep the checkpoint lies
    path = a_memory("--model", text_checkpoint)
    details, memory = json.loads(done("show", str(path), "--json")), Memory.load(path)
    assert memory.chunks is not None
    assert (details["writer"], details["chunks"], details["tokens"]) == ("text", 2, memory.chunks.tokens)
    assert details["bytes"] == memory.nbytes
    assert [one["text"] for one in details["writes"]] == [
        "Alice Brown was born in Oslo.",
        "She works as a baker in Bergen.",
    ]
    text = done("show", str(path))
    assert "Alice Brown was born in Oslo." in text and text_checkpoint in text


def test_show_lists_the_newest_writes_or_all() -> None:
    Path("many.txt").write_text("\n\n".join(f"Alice Brown was born in Oslo in {year}." for year in range(1900, 1925)))
    done("write", "many.mem", "many.txt")

    def ids(*options: str) -> list[str]:
        lines = done("show", "many.mem", *options).splitlines()
        return [line.split()[1] for line in lines if "many.txt" in line]

    assert ids() == [str(number) for number in range(5, 25)]
    assert ids("--all") == [str(number) for number in range(25)]
    assert len(json.loads(done("show", "many.mem", "--json"))["writes"]) == 25


def test_show_says_whether_a_model_can_read_it(tmp_path: Path, checkpoint: str) -> None:
    path = str(a_memory())
    other = MemoryModel.attach(decoder(vocab_size=300, num_hidden_layers=2), tokenizer(), slots=24, slots_per_write=6)
    other.save_pretrained(tmp_path / "other")
    assert json.loads(done("show", path, "--json", "--model", checkpoint))["readable"] is True
    details = json.loads(done("show", path, "--json", "--model", "other"))
    assert (details["readable"], details["trained"]) == (False, False)
    assert details["differs"] == ["layers", "model"]
    assert "never trained" in done("show", path, "--model", "other")
    assert f"use --model {checkpoint}" in refused_after_a_note("ask", path, "Who?", "--model", "other")


def refused_after_a_note(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 2
    note, error = result.stderr.strip().splitlines()
    assert "never trained" in note
    return error


def test_a_writer_that_was_never_trained_is_said_once_beside_the_answer(tmp_path: Path) -> None:
    model = MemoryModel.attach(decoder(vocab_size=300), tokenizer(), slots=24, slots_per_write=6)
    assert "not trained" in repr(model)
    assert "not trained" not in repr(with_memory(decoder(vocab_size=300)))
    model.save_pretrained(tmp_path / "new")
    a_memory("--model", "new")
    result = run("ask", "notes.mem", "Who?", "--model", "new")
    assert result.exit_code == 0
    assert result.stderr.count("never trained") == 1


def test_train_runs_a_recipe_with_its_settings() -> None:
    Path("mine.py").write_text(RECIPE)
    done("train", "mine.py", "--resume", "--minutes", "2", "--", "steps=7")
    assert Path("runs/mine/made").read_text() == "True 2.0 7"
    assert "elsewhere" in done("train", "mine.py", "--output", "elsewhere")
    assert Path("elsewhere/made").read_text() == "False None 5"


def test_train_passes_an_optimizer_on_to_recipes_that_leave_the_choice() -> None:
    Path("mine.py").write_text(RECIPE)
    assert "the recipe does not take 'optimizer=grass'" in refused("train", "mine.py", "--optimizer", "grass")
    done("train", "mine.py", "--optimizer", "default")
    Path("free.py").write_text(RECIPE.replace("steps", "optimizer"))
    done("train", "free.py", "--optimizer", "grass")
    assert Path("runs/free/made").read_text() == "False None 'grass'"


def test_train_passes_on_where_logs_go() -> None:
    Path("mine.py").write_text(RECIPE)
    assert "the recipe does not take 'log_to=trackio'" in refused("train", "mine.py", "--log-to", "trackio")
    Path("free.py").write_text(RECIPE.replace("steps", "log_to"))
    done("train", "free.py", "--log-to", "trackio")
    assert Path("runs/free/made").read_text() == "False None 'trackio'"


def test_train_lists_the_recipes_there_are() -> None:
    Path("recipes").mkdir()
    Path("recipes/mine.py").write_text(RECIPE)
    own = "llama_3_1_8b, small, smollm2, smollm2_found, smollm2_retriever, smollm2_writer, tiny, tiny_longterm"
    assert f"{own}, {Path('recipes/mine.py')}" in refused("train", "recipes/none.py")


@pytest.mark.parametrize("word", ["stops=7", "steps", "minutes=3"])
def test_train_refuses_settings_that_the_recipe_does_not_take(word: str) -> None:
    Path("mine.py").write_text(RECIPE)
    assert "steps" in refused("train", "mine.py", "--", word)
    assert not Path("runs").exists()


def test_train_refuses_a_file_without_a_recipe() -> None:
    Path("plain.py").write_text("x = 1\n")
    assert "no function train" in refused("train", "plain.py")


def test_show_says_what_is_in_long_term_memory_and_where(longterm_checkpoint: str) -> None:
    Path("notes.txt").write_text("\n\n".join(f"Alice Brown was born in Oslo in {year}." for year in range(1950, 1960)))
    done("write", "long.mem", "notes.txt", "--model", longterm_checkpoint, "--tier", "disk", "--int8")
    details = json.loads(done("show", "long.mem", "--json"))
    assert details["longterm"] == [9 * 6]  # the first of ten writes evicts nothing
    assert (details["tier"], details["int8"]) == ("disk", True)
    assert details["bytes"] == Memory.load("long.mem").nbytes
    text = done("show", "long.mem")
    assert "disk, int8" in text and "bytes, disk" in text
    done("write", "long.mem", "notes.txt", "--model", longterm_checkpoint)
    assert json.loads(done("show", "long.mem", "--json"))["longterm"] == [19 * 6]
    assert done("ask", "long.mem", "Where?", "--model", longterm_checkpoint) != ""
    for file in Path("long.mem.longterm").iterdir():
        file.unlink()
    assert "is missing" in refused("ask", "long.mem", "Where?", "--model", longterm_checkpoint)
    assert len(json.loads(done("show", "long.mem", "--json"))["missing"]) == 1


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["ask", "none.mem", "Who?"], "remanence write none.mem"),
        (["show", "none.mem"], "remanence write none.mem"),
        (["show", "."], "is a folder, not a memory"),
        (["ask", ".", "Who?"], "is a folder, not a memory"),
        (["write", ".", "-"], "is a folder; name a file"),
        (["write", "new.mem", "."], "is a folder; name files in it"),
        (["search", "none.mem", "Who?"], "remanence write none.mem"),
        (["forget", "none.mem", "0"], "remanence write none.mem"),
        (["ask", "none.mem", " "], "there is no question"),
        (["write", "nowhere/notes.mem", "-"], "no folder nowhere"),
        (["chat", "nowhere/notes.mem"], "no folder nowhere"),
        (["demo", "none.txt"], "no file none.txt"),
        (["demo", "--output", "nowhere"], "no folder nowhere"),
    ],
)
def test_what_is_missing_is_named_with_a_remedy(words: list[str], remedy: str) -> None:
    assert remedy in refused(*words, stdin="text")


def test_a_file_that_is_no_memory_is_refused() -> None:
    Path("notes.mem").write_text("hello")
    assert "not a memory" in refused("show", "notes.mem")


def test_a_checkpoint_that_is_not_bundled_is_refused_with_those_that_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint named 'huge'.*--model"):
        bundled("huge")
