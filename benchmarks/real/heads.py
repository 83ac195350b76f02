"""Where there is no chat template: how likely an answer is behind each kind of head.

Four passages are told, one of which holds the answer, each encoded behind

no head        nothing
EOS head       the token that ends a text
chat head      the default system message, as in conversations

and the question is asked in text, of the model alone, without a reader. As text: the four stand in front of the
question. Given is the mean negative log-probability of the shortest answer's tokens.
"""

from collections.abc import Sequence
from functools import partial

from real.questions import Settings, Way, evaluation_of
from remanence import MemoryModel
from remanence.evaluation.columns import only, reading_all
from remanence.evaluation.evidence import Asked
from remanence.evaluation.harness import Evaluation
from remanence.evaluation.metrics import Metric
from remanence.evaluation.scoring import score_tokens

__all__ = ["Settings", "evaluation"]


def evaluation(on: Settings) -> tuple[MemoryModel, Evaluation]:
    model = MemoryModel.from_pretrained(on.model).optimize_for_cpu()

    def loss(one: Asked, told: Sequence[str], head: Sequence[int] | None = None, shown: Sequence[str] = ()) -> float:
        """Of the answer's tokens, behind a memory of what is told and, as text, what is shown."""
        memory = model.new_memory(head=head)
        texts = "\n".join([*shown, f"Question: {one.text}\nAnswer:"]), f" {min(one.truths, key=len)}"
        prompt, answer = (model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        with only(model, ()), reading_all(model):
            for passage in told:
                model.write(memory, passage)
            (scored,), _ = score_tokens(model, memory, [(prompt, answer)])
        return -sum(scored.likelihoods) / len(scored.likelihoods)

    ways: dict[str, Way] = {
        "nothing": lambda one, told: loss(one, ()),
        "no head": partial(loss, head=()),
        "EOS head": partial(loss, head=(model.tokenizer.eos_token_id,)),
        "chat head": loss,
        "as text": lambda one, told: loss(one, (), shown=told),
    }
    return model, evaluation_of("heads", on, model, 4, ways, Metric("loss", "mean", compared=True))
