"""What is to be reached on an H100, beside what the records of a session say: "not measured" until one of them does.

python -m benchmarks.gpu_aims out/gpu           (a folder with records of `benchmarks.gpu_session`)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import expectations
from benchmarks.record import markdown_table, number

Row = dict[str, Any]
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Aim:
    """A number that a record must reach: at least `limit`, or at most where `most`."""

    name: str
    limit: float
    unit: str
    most: bool
    find: Callable[[Records], float | None]

    def reached(self, value: float) -> bool:
        return value <= self.limit if self.most else value >= self.limit


@dataclass(frozen=True, slots=True)
class Records:
    """Rows of the records in a folder, the newest file last.

    Attributes:
        tables: records of `paper_tables` of the 7B.
        served: records of `gpu_serving` by file name.
    """

    tables: tuple[Row, ...] = ()
    served: tuple[tuple[str, Row], ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Records:
        """Files that are not there, or no records, are left out."""

        def load(pattern: str) -> Iterator[tuple[str, Row]]:
            for path in sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime):
                yield path.stem, json.loads(path.read_text(encoding="utf-8"))

        tables = tuple(record for _, record in load("paper_tables_*.json") if record.get("size") == "7b")
        return cls(tables, tuple(load("serving_7b*.json")))

    def table(self, part: str, value: str, **wanted: object) -> float | None:
        """The newest value of a row of a part that has all the wanted values."""
        rows = [row for record in self.tables for row in record.get(part, ())]
        return _last(rows, value, wanted)

    def row(self, value: str, **wanted: object) -> float | None:
        """The best value of a served row, over all ways to share the GPU."""
        found = [_last(record.get("rows", ()), value, wanted) for _, record in self.served]
        return min((one for one in found if one is not None), default=None)


def _last(rows: Iterable[Row], value: str, wanted: Row) -> float | None:
    found = [row.get(value) for row in rows if all(row.get(key) == one for key, one in wanted.items())]
    return next((one for one in reversed(found) if one is not None), None)


def _speeds() -> Iterator[Aim]:
    for variant, weights in (("kernels", "bf16"), ("fp8", "FP8")):
        for (mode, head), limit in expectations.TOKENS_PER_S[variant][1].items():
            if (variant, mode) == ("fp8", "vanilla"):
                continue  # a prediction, no aim

            find = partial(_speed, variant, mode, head)
            yield Aim(f"{mode}, {head} head, {weights}, 1 stream", limit, "tokens/s", False, find)


def _speed(variant: str, mode: str, head: str, records: Records) -> float | None:
    return records.table("table5", "tokens_per_s", streams=1, implementation=variant, mode=mode, head=head)


def _turbo_by_vanilla(records: Records) -> float | None:
    turbo, vanilla = _speed("kernels", "turbo", "audio-only", records), _speed("kernels", "vanilla", "full", records)
    return turbo / vanilla if turbo and vanilla else None


def _growth(records: Records) -> float | None:
    """TTFA P95 at 32 streams by that at 1, of the same server."""
    found = []
    for _, record in records.served:
        one, many = (_last(record.get("rows", ()), "ttfa_ms_p95", {"streams": count}) for count in (1, 32))
        found += [many / one] if one and many else []
    return min(found, default=None)


AIMS = (
    *_speeds(),
    Aim("turbo / vanilla, 1 stream", 5.0, "x", False, _turbo_by_vanilla),
    Aim("first chunk of audio tokens, boost, audio-only head, prompt of 32", 12.0, "ms", True,
        lambda records: records.table("first_chunk", "ms", mode="boost", head="audio-only", implementation="kernels")),
    Aim("decoder, first chunk, TF32", expectations.AUDIO_TF32_MS, "ms", True,
        lambda records: records.table("audio", "ms", stage="first chunk", engines="graphs, tf32")),
    Aim("decoder, first chunk, half precision", expectations.AUDIO_HALF_MS, "ms", True,
        lambda records: records.table("audio", "ms", stage="first chunk", engines="graphs, fp16")),
    Aim("TTFA P50, 1 stream, through the server", 60.0, "ms", True,
        lambda records: records.row("ttfa_ms_p50", streams=1)),
    Aim("TTFA P95, 32 streams", 100.0, "ms", True, lambda records: records.row("ttfa_ms_p95", streams=32)),
    Aim("TTFA P95, 32 streams by 1 stream", 1.25, "x", True, _growth),
    Aim("real-time factor P95, 64 streams", 1.0, "", True, lambda records: records.row("rtf_p95", streams=64)),
    Aim("streams with underruns, 64 streams", 0.0, "", True,
        lambda records: records.row("underrun_streams", streams=64)),
)  # fmt: skip


def table(records: Records) -> str:
    """All aims as Markdown."""
    rows = []
    for aim in AIMS:
        value, digits = aim.find(records), 2 if aim.limit < 10 else 0
        limit = f"{'at most' if aim.most else 'at least'} {number(aim.limit, digits)} {aim.unit}".strip()
        said = "-" if value is None else "yes" if aim.reached(value) else "NO"
        rows.append([aim.name, limit, number(value, digits, missing=NOT_MEASURED), said])
    return markdown_table("what|aim|measured|reached", rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="records of a session")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder")
    print(table(Records.read(options.folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
