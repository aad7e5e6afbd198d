"""The record of `paper_tables` as Markdown: measured, predicted, and "not measured" where there is no number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks import expectations
from benchmarks.paper_setting import CHUNK_TOKENS, FIRST_CHUNK_TOKENS, PROMPT_TOKENS, SPEECH_TOKENS
from benchmarks.record import cells
from benchmarks.record import markdown_table as table
from benchmarks.record import number as plain_number
from benchmarks.roofline import BF16, FLOAT32, PAPER_TOKENS_PER_S, SIZES, Peaks, tokens_per_s, work
from vita_audio.contract.modes import NAMED_MODES

NOT_MEASURED = "not measured"
#: Paper, Table E7 (7B, its own GPU and code): ms to the first audio token chunk, encoder, decoder with 1 flow step.
PAPER_FIRST_CHUNK_MS = {"boost": 53.0, "vanilla": 236.0}
PAPER_ENCODER_MS, PAPER_DECODER_MS = 39.0, 151.0

Row = dict[str, Any]


def number(value: float | None, digits: int = 0, unit: str = "") -> str:
    return plain_number(value, digits, unit, NOT_MEASURED)


def render(record: Row) -> str:
    """The whole report; parts that were not asked for are absent."""
    off = ", ".join(record["kernels_off"]) or "none"
    found = ", ".join(record.get("kernels_found_off", [])) or "none"
    sheet = record["datasheet_tb_s"], record["datasheet_tflop_s"]
    text = [
        f"# Paper tables, {record['size']}, {record['dtype']}",
        f"`{record['command']}`  \n{record['machine']}, {record['date']}. Random weights; {record['slots']} slots of "
        f"{record['slot_context']} tokens. Attention: {record.get('attention', '-')}; kernels off: {off}, in the first "
        f"variant after its check: {found}.",
        f"In this run a copy moved {record['copy_tb_s']:.3g} TB/s and a product of large matrices made "
        f"{record['product_tflop_s']:.3g} TFLOP/s"
        + (f" (datasheet: {sheet[0]:g}, {sheet[1]:g})." if sheet[0] else "; datasheet not known here."),
        "Predicted before measuring (bytes and arithmetic of each token, short contexts): tokens/s at batch 1\n\n"
        + prediction(record),
    ]
    for title, key, part in (
        ("Single calls", "steps", steps),
        ("What each kernel is worth", "bisect", bisect),
        ("The host's share of a call", "host", host),
        ("Kernels of a call", "profile", profiles),
        (f"Table 5: tokens/s, batch 1, {record['tokens']} tokens", "table5", speeds),
        ("Batches", "batch", speeds),
        (f"Eager baseline, batch 1, {record['baseline_tokens']} tokens", "baseline", speeds),
        ("Table E7: time to the first audio chunk", "first_chunk", first_chunk),
        ("Audio", "audio", audio),
        ("Before a server is ready", "prepare", prepared),
        ("Audio-only head against full head", "heads", heads),
    ):
        if key in record:
            text += [f"## {title}", part(record, record[key])]
        if key in record["faults"]:
            text.append(f"This part failed: {record['faults'][key]}")
    return "\n\n".join(text) + "\n"


def prediction(record: Row) -> str:
    parts = work(SIZES[record["size"]], BF16 if record["dtype"] == "bfloat16" else FLOAT32)
    rates = [
        ("this run's copy", record["copy_tb_s"], record["product_tflop_s"]),
        ("datasheet", record["datasheet_tb_s"], record["datasheet_tflop_s"]),
    ]
    rows = []
    for name, moved, made in rates:
        peaks = Peaks(moved * 1e12, made * 1e12) if moved else None
        for head, audio in (("full", False), ("audio-only", True)):
            speeds = [tokens_per_s(parts, mode, peaks, audio_head=audio) if peaks else None for mode in NAMED_MODES]
            rate = NOT_MEASURED if moved is None else f"{moved:.3g}"
            rows.append([name, rate, head, *(number(speed) for speed in speeds)])
    return table("bandwidth|TB/s|head|" + "|".join(NAMED_MODES), rows)


def speed_of(rows: Iterable[Row], **wanted: object) -> float | None:
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
        vanilla = speed_of(rows, mode="vanilla", streams=streams, implementation=row["implementation"])
        eager = speed_of(record.get("baseline", []), mode=mode) if streams == 1 else None
        lines.append(
            [
                row["implementation"], str(streams), mode, row["head"], str(row.get("tokens", "-")), number(speed),
                _ratio(speed, vanilla), _ratio(speed, eager) if streams == 1 else "-",
                number(row.get("achieved_gb_s")), number(row.get("roofline_tokens_per_s")),
                _share(row),
                f"{paper[mode]:g}" if streams == 1 and mode in paper else "-", _expected(record, row),
            ]
        )  # fmt: skip
    header = (
        "implementation|streams|mode|head|tokens each|tok/s|/ vanilla|/ eager|GB/s|roofline tok/s|share|paper tok/s|"
        "expected tok/s"
    )
    return table(header, lines)


def _share(row: Row) -> str:
    """Of what limits a row; records before there was a bound of arithmetic have that of memory."""
    limit = " of compute" if row.get("bound") == "compute" else ""
    return f"{100 * row['share']:.0f} %{limit}" if "share" in row else NOT_MEASURED


def _expected(record: Row, row: Row) -> str:
    """Tokens/s that were predicted for a row of the 7B, "-" for anything else."""
    if record["size"] != "7b":
        return "-"
    by_streams = expectations.TOKENS_PER_S.get(row["implementation"], {}).get(row["streams"], {})
    speed = by_streams.get((row["mode"], row["head"]))
    return "-" if speed is None else f"{speed:.0f}"


def steps(record: Row, rows: list[Row]) -> str:
    lines = []
    for row in rows:
        alone = record["size"] == "7b" and row["streams"] == 1
        by_call = expectations.STEP_MS.get(row["implementation"], {}) if alone else {}
        spec = "call implementation streams head ms:2 floor_ms:2 bound achieved_gb_s:0 achieved_tflop_s:1"
        figures = [*cells(row, spec, NOT_MEASURED), _share(row)]
        lines.append([*figures, plain_number(by_call.get((row.get("kind", ""), row.get("head", ""))), 1)])
    return table("call|variant|streams|head|ms|floor ms|bound|GB/s|TFLOP/s|share of roofline|expected ms", lines)


def bisect(_: Row, rows: list[Row]) -> str:
    """ms of two calls with each kernel off alone, and what that adds: above 0 the kernel helps."""
    lines, whole = [], rows[0]
    for row in rows:
        more = [
            number(row[key] - whole[key], 3) if key in row and key in whole else NOT_MEASURED
            for key in ("extend_ms", "burst_ms")
        ]
        lines.append([row["off"], *cells(row, "extend_ms:3 burst_ms:3", NOT_MEASURED), *more])
    return table("off|extend, 11 rows ms|burst, audio-only ms|extend more|burst more", lines)


def host(_: Row, rows: list[Row]) -> str:
    spec = "call streams head ms:3 device_ms:3 launch_ms:3 host_ms:3"
    header = "call|streams|head|ms|device alone ms|launch (host) ms|inputs and result (host) ms"
    return table(header, (cells(row, spec, NOT_MEASURED) for row in rows))


def profiles(record: Row, rows: list[Row]) -> str:
    lines = []
    for row in rows:
        by_call = expectations.LAUNCHES.get(row["implementation"], {}) if record["size"] == "7b" else {}
        low, high = by_call.get(row.get("kind", ""), (0, 0))
        spec = "call implementation streams head launches span_ms:2 busy_ms:2 longest_gap_us:1"
        lines.append([*cells(row, spec, NOT_MEASURED), f"{low}-{high}" if high else "-"])
    return (
        table(
            "call|variant|streams|head|launches|ms from first to last|ms busy|longest gap us|expected launches", lines
        )
        + "\nThe kernels of each call by time are in the text file beside this one; copies count as launches there.\n"
    )


def kernels(record: Row) -> str:
    """The kernels of every profiled call, as text."""
    parts = [f"{record['command']}\n{record['machine']}, {record['date']}\n"]
    for row in record["profile"]:
        if "table" in row:
            what = f"{row['implementation']}: {row['call']}, head {row['head']}, {row['streams']} stream(s)"
            parts.append(f"== {what}\n{row['table']}")
    return "\n".join(parts)


def prepared(record: Row, rows: list[Row]) -> str:
    spec = "slots context chunk programs seconds:1 slots_gib:2 programs_gib:2 estimate_gib:2"
    text = table(
        "slots|context|prompt chunk|programs|seconds|GiB of slots|GiB of programs|estimated",
        (cells(row, spec, NOT_MEASURED) for row in rows),
    )
    if record["size"] == "7b":
        low, high = expectations.PREPARE_S
        text += (
            f"\nExpected at 64 slots, prompts by 256 tokens: {expectations.PREPARE_PROGRAMS} programs, "
            f"{low:g}-{high:g} s with a cold kernel cache, up to {expectations.PREPARE_GIB} GiB.\n"
        )
    return text


def first_chunk(record: Row, rows: list[Row]) -> str:
    lines = []
    for row in rows:
        expected = None
        if record["size"] == "7b":
            by_head = expectations.FIRST_CHUNK_MS.get(row["implementation"], {})
            expected = by_head.get((row["mode"], row["head"]))
        lines.append([*cells(row, "implementation mode head ms:1", NOT_MEASURED), plain_number(expected, 1)])
    if record["size"] == "7b":
        lines += [["paper", mode, "full", f"{ms:g}", "-"] for mode, ms in PAPER_FIRST_CHUNK_MS.items()]
    return table("language model|mode|head|first chunk ms|expected ms", lines) + (
        f"\nPrompt of {PROMPT_TOKENS} tokens to output token {FIRST_CHUNK_TOKENS}; no server, no network.\n"
    )


def audio(record: Row, rows: list[Row]) -> str:
    """The speech tokenizer and the streaming decoder as served; in records of 2026-11-27 also stages alone."""
    served = []
    for row in (row for row in rows if "precision" not in row):
        if "engine_ms" in row:  # what was not engine calls, then
            row = row | {"host_ms": row["ms"] - row["engine_ms"]}
        figures = cells(row, "stage engines streams ms:1 host_ms:1 audio_ms:0")
        served.append([*figures, f"{row['difference']:.1e}" if "difference" in row else "-"])
    text = table("stage|engines|streams|ms|of it host|ms of sound|difference", served)
    stages = [cells(row, "stage precision eager_ms:1 graph_ms:1", NOT_MEASURED) for row in rows if "precision" in row]
    if stages:
        text += "\n" + table("stage|precision|eager ms|CUDA graph ms", stages)
    text += (
        f"\nEncoder: {SPEECH_TOKENS} tokens of speech. Decoder, N step(s): {CHUNK_TOKENS} audio tokens to a wave. The "
        "others take 4 flow steps. Host: until the device has all of its work, the rest is waiting for it. Difference: "
        "of samples, as a share of full scale, to the eager engines in float32.\n"
    )
    if record["size"] == "7b":
        text += (
            f"Aim for the first chunk: at most {expectations.AUDIO_TF32_MS:g} ms in TF32, "
            f"{expectations.AUDIO_HALF_MS:g} ms in half precision. The paper's: encoder {PAPER_ENCODER_MS:g} ms, "
            f"decoder {PAPER_DECODER_MS:g} ms with one flow step.\n"
        )
    return text


def heads(_: Row, rows: list[Row]) -> str:
    spec = "mode full_head bursts tokens_compared tokens_equal share:%"
    return table(
        "mode|full head says|bursts|tokens compared|equal|share", (cells(row, spec, NOT_MEASURED) for row in rows)
    ) + (
        "\nRandom weights spread over all ids, so a free full head mostly says text and the free rows mean little; a "
        "trained boost model says audio there. With text ids out of both, only rounding parts them."
    )
