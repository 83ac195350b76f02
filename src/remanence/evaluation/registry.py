"""All evaluations. A new one is a module of this package, and a line here.

A module has a `COMMAND` and a function `evaluation(model, columns, *, ..., folder=None)`. Its keyword arguments are the
options of `remanence eval NAME`, its docstring is the help; `folder` is where `--resume` keeps what is told.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

EVALUATIONS = {
    "squad": "Questions about passages that were told: one alone, among others, or not at all.",
    "locomo": "Very long conversations: evidence found, F1 of answers, by kind of question.",
    "longmemeval": "Chats with an assistant, each question with a history of its own.",
    "multihop": "Questions whose answer takes several paragraphs: HotpotQA and MuSiQue.",
    "babi": "bAbI's facts, told after some thousand tokens of novels or after many.",
    "longcontext": "Long documents with a question each: LongBench, RULER, bAbI's facts hidden in novels.",
    "retention": "How often a text is recalled, by the writes since it was written.",
    "retrieval": "How many of a text's slots a question brings back from long-term memory.",
    "editing": "Facts that change: by memory, as text, by fine-tuning.",
    "integrity": "Whether a memory works after very many writes as after few.",
    "harm": "Whether a memory of something else changes what the model says.",
}


@dataclass(frozen=True)
class Command:
    """How an evaluation is run from the command line.

    Attributes:
        examples: options, for the help.
        columns: without a memory, that are measured where none are named; with commas between.
        also: what its columns may show besides these and the memories of the model.
        whole: where no columns are named, one memory is measured, with all that the model has for it; else each.
        learned: it is for learned memories, so that the bundled one is the usual model.
    """

    examples: tuple[str, ...]
    columns: str = ""
    also: tuple[str, ...] = ()
    whole: bool = False
    learned: bool = False

    @property
    def shows(self) -> list[str]:
        """What its columns may show besides memories."""
        return [*dict.fromkeys(one.partition("_")[0] for one in self.columns.split(",") if one), *self.also]


def load(name: str) -> tuple[Command, Callable[..., object]]:
    """The command of an evaluation, and the function that makes it."""
    module = import_module(f"remanence.evaluation.{name}")
    return module.COMMAND, module.evaluation
