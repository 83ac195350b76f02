"""Questions about whole documents, by length."""

from retention.table import NAMES
from tables import Figures, grid, interval


def table(figures: Figures) -> str:
    rows = [
        (
            "longer" if point["length"] is None else f"{point['length']:,}",
            NAMES[condition],
            f"{point['samples']:,}",
            interval(point["f1"], point["f1_stderr"]),
            interval(point["exact_match"], point["exact_match_stderr"]),
        )
        for points in zip(*figures["points"].values(), strict=True)
        for condition, point in zip(figures["points"], points, strict=True)
    ]
    about = (
        f"Documents of {figures['data']}, answers of at most {figures['answer_tokens']} tokens, with one standard "
        f"error. N = {figures['n']}, K = {figures['k']}."
    )
    return "\n".join([grid(("length, in tokens", "", "asked", "F1", "exact match"), rows), "", about])
