"""The record of `paper_tables` as Markdown: measured, predicted, and "not measured" where there is no number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.paper_audio import CHUNK_TOKENS, FLOW_STEPS, SPEECH_TOKENS
from benchmarks.paper_language_model import FIRST_CHUNK_TOKENS, PROMPT_TOKENS
from benchmarks.roofline import PAPER_TOKENS_PER_S, SIZES, tokens_per_s, traffic
from vita_audio.modes import NAMED_MODES

NOT_MEASURED = "not measured"
#: Paper, Table E7 (7B, its own GPU and code): ms to the first audio token chunk, encoder, decoder with 1 flow step.
PAPER_FIRST_CHUNK_MS = {"boost": 53.0, "vanilla": 236.0}
PAPER_ENCODER_MS, PAPER_DECODER_MS = 39.0, 151.0

Row = dict[str, Any]


def number(value: float | None, digits: int = 0, unit: str = "") -> str:
    return NOT_MEASURED if value is None else f"{value:.{digits}f}{unit}"


def table(header: str, rows: Iterable[Iterable[str]]) -> str:
    columns = header.split("|")
    lines = [columns, ["---"] * len(columns), *([*row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def render(record: Row) -> str:
    """The whole report; parts that were not asked for are absent."""
    datasheet = record["datasheet_tb_s"]
    text = [
        f"# Paper tables, {record['size']}, {record['dtype']}",
        f"`{record['command']}`  \n{record['machine']}, {record['date']}. Random weights. "
        f"Attention: {record['attention']}; torch.compile: {'on' if record['compiled'] else 'off'}.",
        f"Memory bandwidth: {record['copy_tb_s']:.3g} TB/s by a copy in this run"
        + (f", {datasheet:g} TB/s by the datasheet." if datasheet else "; datasheet not known here."),
        "Predicted before measuring (bytes each token must move, short contexts): tokens/s at batch 1\n\n"
        + prediction(record),
    ]
    for title, key, part in (
        (f"Table 5: tokens/s, batch 1, {record['tokens']} tokens", "table5", speeds),
        ("Batches", "batch", speeds),
        (f"Eager baseline, batch 1, {record['baseline_tokens']} tokens", "baseline", speeds),
        ("Single calls", "steps", steps),
        ("Table E7: time to the first sound", "first_chunk", first_chunk),
        ("Audio-only head against full head", "heads", heads),
    ):
        if key in record:
            text += [f"## {title}", part(record, record[key])]
        if key in record["faults"]:
            text.append(f"This part failed: {record['faults'][key]}")
    return "\n\n".join(text) + "\n"


def prediction(record: Row) -> str:
    parts = traffic(SIZES[record["size"]], 2 if record["dtype"] == "bfloat16" else 4)
    rates = [("this run's copy", record["copy_tb_s"]), ("datasheet", record["datasheet_tb_s"])]
    rows = []
    for name, rate in rates:
        for head, audio in (("full", False), ("audio-only", True)):
            speeds = [
                tokens_per_s(parts, mode, rate * 1e12, audio_head=audio) if rate else None for mode in NAMED_MODES
            ]
            rows.append(
                [name, NOT_MEASURED if rate is None else f"{rate:.3g}", head, *(number(speed) for speed in speeds)]
            )
    return table("bandwidth|TB/s|head|" + "|".join(NAMED_MODES), rows)


def _speed(rows: Iterable[Row], **wanted: object) -> float | None:
    """Tokens/s of the first row that has all the wanted values."""
    found = (row.get("tokens_per_s") for row in rows if all(row.get(key) == value for key, value in wanted.items()))
    return next(found, None)


def _ratio(speed: float | None, other: float | None) -> str:
    return NOT_MEASURED if speed is None or other is None else f"{speed / other:.2f}x"


def speeds(record: Row, rows: list[Row]) -> str:
    paper = PAPER_TOKENS_PER_S.get(record["size"], {})
    lines = []
    for row in rows:
        speed, streams, mode = row.get("tokens_per_s"), row["streams"], row["mode"]
        vanilla = _speed(rows, mode="vanilla", streams=streams)
        eager = _speed(record.get("baseline", []), mode=mode) if streams == 1 else None
        lines.append(
            [
                row["implementation"], str(streams), mode, row["head"], str(row.get("tokens", "-")), number(speed),
                _ratio(speed, vanilla), _ratio(speed, eager) if streams == 1 else "-",
                number(row.get("achieved_gb_s")), number(row.get("roofline_tokens_per_s")),
                number(None if speed is None else 100 * row["share"], 0, " %"),
                f"{paper[mode]:g}" if streams == 1 and mode in paper else "-",
            ]
        )  # fmt: skip
    header = (
        "implementation|streams|mode|head|tokens each|tok/s|/ vanilla|/ eager|GB/s|roofline tok/s|share|paper tok/s"
    )
    return table(header, lines)


def steps(_: Row, rows: list[Row]) -> str:
    return table(
        "call|streams|head|ms|floor ms|GB/s|share of roofline",
        (
            [
                row["call"], str(row["streams"]), row.get("head", "-"), number(row.get("ms"), 2),
                number(row.get("floor_ms"), 2), number(row.get("achieved_gb_s")),
                number(100 * row["share"] if "share" in row else None, 0, " %"),
            ]
            for row in rows
        ),
    )  # fmt: skip


def first_chunk(record: Row, rows: list[Row]) -> str:
    model = [row for row in rows if row["stage"] == "language model"]
    audio = {(row["stage"], row["implementation"]): row["ms"] for row in rows if row["stage"] != "language model"}
    stages = ["encoder", *(f"decoder, {count} step(s)" for count in FLOW_STEPS)]
    text = table(
        "stage|eager ms|CUDA graph ms",
        ([stage, *(number(audio.get((stage, how)), 1) for how in ("eager", "CUDA graph"))] for stage in stages),
    )
    lines = []
    for row in model:
        how = "eager" if row["implementation"] == "eager baseline" else "CUDA graph"
        encoder, *decoders = (
            audio.get((stage, how)) if audio.get((stage, how)) is not None else audio.get((stage, "eager"))
            for stage in stages
        )
        sums = [
            None if None in (row["ms"], encoder, decoder) else row["ms"] + encoder + decoder for decoder in decoders
        ]
        lines.append(
            [row["implementation"], row["mode"], row["head"], number(row["ms"], 1), *(number(s, 1) for s in sums)]
        )
    if record["size"] == "7b":
        for mode, first in PAPER_FIRST_CHUNK_MS.items():
            total = first + PAPER_ENCODER_MS + PAPER_DECODER_MS
            lines.append(["paper", mode, "full", f"{first:g}", f"{total:g}", *["-"] * (len(FLOW_STEPS) - 1)])
    sums_header = "|".join(f"sum, {count} step(s)" for count in FLOW_STEPS)
    text += "\n" + table(f"language model|mode|head|first chunk ms|{sums_header}", lines)
    return text + (
        f"\nLanguage model: prompt of {PROMPT_TOKENS} tokens to output token {FIRST_CHUNK_TOKENS}. Encoder: "
        f"{SPEECH_TOKENS} tokens of speech. Decoder: {CHUNK_TOKENS} audio tokens to a wave. A sum is language model + "
        "encoder + decoder, as CUDA graphs where there are any; no server, no network."
    )


def heads(_: Row, rows: list[Row]) -> str:
    text = table(
        "mode|full head says|bursts|tokens compared|equal|share",
        (
            [
                row["mode"], row["full_head"], *(str(row.get(k, NOT_MEASURED)) for k in ("bursts", "tokens_compared")),
                str(row.get("tokens_equal", NOT_MEASURED)),
                number(100 * row["share"] if "share" in row else None, 1, " %"),
            ]
            for row in rows
        ),
    )  # fmt: skip
    return text + (
        "\nRandom weights spread over all ids, so a free full head mostly says text and the free rows mean little; a "
        "trained boost model says audio there. With text ids out of both, only rounding parts them."
    )
