"""Changed facts, by method and number of edits."""

from tables import Figures, grid, interval

METHODS = {
    "none": "no edit",
    "memory": "written into memory",
    "context": "in context",
    "ft": "fine-tuning (FT)",
    "ft_all": "fine-tuning, all layers",
    "ft_l": "fine-tuning, bounded (FT-L)",
}
METRICS = ("efficacy", "generalisation", "specificity")


def table(figures: Figures) -> str:
    rows = [
        (
            f"{result['edits']:,}",
            METHODS[result["method"]],
            f"{result['samples']:,}",
            *(interval(result[name]["rate"], result[name]["stderr"]) if result[name] else "" for name in METRICS),
            interval(result["score"], score_stderr(result)),
        )
        for result in figures["results"]
    ]
    about = (
        f"Exact match with one standard error, that of the score as if the three erred together. N = {figures['n']}, "
        f"K = {figures['k']}; fine-tuning at {figures['rate']:g}, at most {figures['steps']} steps an edit, FT-L at "
        f"most {figures['bound']:g} a weight."
    )
    return "\n".join([grid(("edits", "", "asked", *METRICS, "score"), rows), "", about])


def score_stderr(result: Figures) -> float:
    """Of the harmonic mean, to first order, if the three that it is made of err together."""
    if not result["score"]:
        return 0.0
    asked = [result[name] for name in METRICS if result[name]]
    moved = sum(metric["stderr"] / metric["rate"] ** 2 for metric in asked)
    return float(result["score"] ** 2 / len(asked) * moved)
