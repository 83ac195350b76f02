"""A text read behind memories of other text."""

from tables import Figures, grid, interval

NAMES = {
    "empty": "empty",
    "shipped": "as the checkpoint ships it",
    "unrelated": "full of unrelated text",
    "related": "the same, then the text before",
}


def table(figures: Figures) -> str:
    rows = [
        (NAMES[name], f"{one['perplexity']:,.2f} ± {one['stderr']:,.2f}", interval(one["ratio"], one["ratio_stderr"]))
        for name, one in figures["conditions"].items()
    ]
    about = (
        f"{figures['samples']} windows of {figures['window']} tokens, {figures['tokens']:,} predicted, with one "
        f"standard error; that of a ratio is of paired differences. N = {figures['n']}, K = {figures['k']}."
    )
    return "\n".join([grid(("", "perplexity", "times empty"), rows), "", about])
