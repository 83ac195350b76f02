"""Reading and writing against the plain path."""

from tables import Figures, grid, medians, ms

CASES = {
    "unread": "on a memory not read before",
    "other": "on two memories by turns",
    "after_write": "after a write",
    "again": "on the memory read last",
}


def table(figures: Figures) -> str:
    first, update, decode = figures["first_token"], figures["pool_update"], figures["decode"]
    held, batch = figures["slot_bytes"], figures["batch"]
    few, many = update["slots"]
    slopes = first["slope_ms_per_1000_slots"]
    rows = [
        (
            f"first token, {what}, N = {row['slots']:,}",
            ms(row[name]),
            ms(row["reference"]),
            f"{row['ratio'][name]:.1f}x faster",
        )
        for name, what in CASES.items()
        for row in first["by_slots"]
        if name in row
    ]
    rows += [
        (f"first token, on the memory read last, not optimized, N = {row['slots']:,}", ms(row["unoptimized"]), "", "")
        for row in first["by_slots"]
        if "unoptimized" in row
    ]
    rows += [
        ("first token without any memory", ms(row["alone"]), "", "")
        for row in first["by_slots"]
        if row["slots"] == decode["slots"]
    ]
    rows += [
        (
            "first token on a memory not read before, more for every 1,000 slots",
            f"{slopes['unread']:.1f} ms",
            f"{slopes['reference']:.1f} ms",
            f"{first['slope_ratio']:.2f}x",
        ),
        *(
            (f"pool update, N = {slots:,}", ms(update["remanence"][name]), ms(update["reference"][name]), "")
            for slots, name in ((few, "few"), (many, "many"))
        ),
        (
            f"pool update, N = {many:,} against N = {few:,}",
            f"{update['remanence']['ratio']:.2f}x",
            f"{update['reference']['ratio']:.2f}x",
            "",
        ),
        (
            f"next token, N = {decode['slots']:,} (right: stock model, equally long static cache)",
            ms(decode["remanence"]),
            ms(decode["static_cache"]),
            f"{decode['ratio']:.2f}x",
        ),
        (
            f"{batch['memories']} memories, {batch['new_tokens']} tokens each (right: one call per memory)",
            ms(batch["together"]),
            ms(batch["one_by_one"]),
            f"{batch['ratio']:.1f}x faster",
        ),
        (
            "bytes per slot and layer (right: as a hidden state)",
            f"{held['bytes_per_slot_and_layer']:,.0f}",
            f"{held['hidden_slot_bytes']:,}",
            f"{held['bytes_per_slot_and_layer'] / held['hidden_slot_bytes']:.2f}x",
        ),
    ]
    return "\n".join([grid(("", "Remanence", "plain path", "compared"), rows), "", medians(figures)])
