"""The newest fact, window by window."""

from tables import Figures, grid, interval


def table(figures: Figures) -> str:
    rows = [
        (
            f"{window['writes']:,}",
            interval(window["exact_match"], window["stderr"]),
            f"{window['resident_bytes'] / 2**20:.0f} MiB",
        )
        for window in figures["windows"]
    ]
    about = (
        f"One memory; in each window {figures['questions']} questions about the biography that was just written, with "
        f"one standard error. N = {figures['n']}, K = {figures['k']}."
    )
    return "\n".join([grid(("writes", "newest fact recalled", "resident memory"), rows), "", about])
