"""The campaign's rows as a table, and the numbers that some parts have of their own in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.record import cells, markdown_table, number

COLUMNS = "fault|callers saw|not ready s|streams ended s|back s|streams failed|left behind|right"


def row_cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of `COLUMNS`."""
    verdict = "yes" if not row["wrong"] else "NO: " + "; ".join(row["wrong"])
    if row["callers"].startswith("not run"):
        verdict = "-"
    shown = {**row, "left": row["left"] or "nothing", "right": verdict}
    made = cells(shown, "fault callers not_ready_s:1 ended_s:1 back_s:1 failed left right")
    return [cell.replace("|", "/").replace("\n", " ") for cell in made]


def table(record: Mapping[str, Any]) -> str:
    """All rows as Markdown, and what is known of overload and kills besides."""
    rows = record["rows"].values()
    wrong = sum(bool(row["wrong"]) for row in rows)
    made = sum(not row["callers"].startswith("not run") for row in rows)
    lines = [line for row in rows for line in _details(row)]
    return f"{made - wrong} of {made} rows are right.\n\n{markdown_table(COLUMNS, map(row_cells, rows))}" + "".join(
        f"\n{line}\n" for line in lines
    )


def _details(row: Mapping[str, Any]) -> list[str]:
    figures = row["figures"]
    if row["part"] == "overload" and figures.get("ttfa_ms_p95"):
        ms = {name: number(figures[name]) for name in ("ttfa_ms_p95_capacity", "ttfa_ms_p95", "refused_ms_p95")}
        return [
            "Overload: {capacity_per_s:.2f} streams/s at capacity, {offered_per_s:.1f} offered; TTFA P95 "
            "{ttfa_ms_p95_capacity} ms at capacity, {ttfa_ms_p95} ms in the flood; refusals P95 "
            "{refused_ms_p95} ms; memory {memory_mib_before:.0f} MiB before, {memory_mib_after:.0f} after.".format(
                **{**figures, **ms}
            )
        ]
    if row["part"] == "interruptions" and figures.get("slots_waited_for"):
        return [
            "Interruptions: {cut} of {turns} answers were cut, {cut_in_the_answer} of them after their beginning; "
            "{found} of {later_turns} later turns found theirs in a slot; a slot was free {slot_free_ms_p50:.0f} ms "
            "after a cut in the median, {slot_free_ms_p95:.0f} at P95, {slot_free_ms_max:.0f} at most "
            "({slots_waited_for} waited for one).".format(**figures)
        ]
    if row["part"] == "kills" and figures.get("kills"):
        by = ", ".join(f"{count} of {name}" for name, count in sorted(figures["by_process"].items()))
        return [
            f"Kills: {figures['kills']} in {figures['minutes']:.0f} minutes ({by}); back after "
            f"{number(figures['back_s_p50'], 1)} s in the median."
        ]
    return []
