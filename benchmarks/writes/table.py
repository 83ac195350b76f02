"""What a write costs in a memory of few writes and of many, and the first question after it."""

from tables import Figures, grid, mib


def table(figures: Figures) -> str:
    early, late = ("{:,} to {:,}".format(*figures[name]) for name in ("early", "late"))
    titles = ["", f"write {early}", f"write {late}", "late / early", "question after a write", "the same again", "held"]
    rows = [
        (
            kind,
            f"{1000 * row['early']:.1f} ms",
            f"{1000 * row['late']:.1f} ms",
            f"{row['write_ratio']:.2f}x",
            f"{1000 * row['first']:.1f} ms",
            f"{1000 * row['second']:.1f} ms",
            mib(sum(row["bytes"].values())),
        )
        for kind, row in figures["rows"].items()
    ]
    return f"{grid(titles, rows)}\n\nMedians; held: by all tiers, after the last write."
