"""What the tests noticed, by room, and the mutants that they did not notice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.mutation.session import Mutant

_HEAD = "| room | mutants | killed | of these by time-out | survived | killed, % |\n|---|--:|--:|--:|--:|--:|"


def table(mutants: Sequence[Mutant]) -> str:
    """Markdown, one row for each room and one for all; mutants that are pending or broken do not count."""
    ran = [mutant for mutant in mutants if mutant.outcome not in ("pending", "broken")]
    rooms = list(dict.fromkeys(mutant.room for mutant in ran))
    rows = [_row(room, [mutant for mutant in ran if mutant.room == room]) for room in rooms]
    return "\n".join([_HEAD, *rows, _row("all", ran)])


def report(mutants: Sequence[Mutant]) -> str:
    """The table, what is left to run, and each survivor with its difference."""
    outcomes = Counter(mutant.outcome for mutant in mutants)
    parts = [table(mutants)]
    parts += [f"{outcomes[name]} {name}" for name in ("pending", "broken") if outcomes[name]]
    for mutant in mutants:
        if mutant.outcome == "survived":
            parts.append(f"{mutant.file}:{mutant.line} {mutant.operator}\n\n```diff\n{_changed(mutant.diff)}\n```")
    return "\n\n".join(parts) + "\n"


def _row(name: str, mutants: Sequence[Mutant]) -> str:
    outcomes = Counter(mutant.outcome for mutant in mutants)
    killed = outcomes["killed"] + outcomes["timed out"]
    share = f"{100 * killed / len(mutants):.0f}" if mutants else ""
    return f"| {name} | {len(mutants)} | {killed} | {outcomes['timed out']} | {outcomes['survived']} | {share} |"


def _changed(diff: str) -> str:
    """The lines of a difference that changed."""
    lines = diff.splitlines()
    return "\n".join(line for line in lines if line[:1] in "+-" and not line.startswith(("---", "+++")))
