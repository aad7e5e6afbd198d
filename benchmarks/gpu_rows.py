"""A row of `benchmarks.gpu_serving`: its numbers from what the clients recorded, and its line."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from benchmarks.client_processes import Load, Part
from benchmarks.record import number, spread
from benchmarks.serving import STAGES, first_stages
from loadtest.driver import CANCELLED, DONE
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ


def summarise(part: Part, load: Load, prebuffer_s: float) -> dict[str, Any]:
    """One row's numbers. Times are of streams that began when the load was steady; tokens and sound per second count
    what arrived in that time."""
    steady = [record for record in part.records if record.sent_s >= load.from_s] or part.records
    sounding = [record for record in steady if record.samples]
    done = [record for record in sounding if record.code == DONE] or sounding
    played = [record.playout(prebuffer_s) for record in steady]
    responses = [
        response
        for record in part.records
        for response in record.responses
        if load.from_s <= response.at_s < load.until_s
    ]
    seconds = load.until_s - load.from_s
    return {
        "streams_counted": len(steady),
        "done": sum(record.code == DONE for record in steady),
        "cut": sum(record.code == CANCELLED for record in steady),
        "failed": sum(bool(record.error) for record in steady),
        "no_sound": len(steady) - len(sounding),
        "errors": dict(Counter(record.error[:200] for record in part.records if record.error)),
        **spread("ttfa_ms", [record.ttfa_ms for record in steady]),
        **spread("first_sample_ms", [record.first_sample_ms for record in steady]),
        **spread("rtf", [record.real_time_factor for record in done]),
        "underruns": sum(len(each.underruns) for each in played),
        "underrun_streams": sum(bool(each.underruns) for each in played) / len(steady) if steady else None,
        "underrun_s": sum(each.underrun_s for each in played),
        "prebuffer_ms": prebuffer_s * 1e3,
        "tokens_per_s": sum(response.tokens for response in responses) / seconds,
        "audio_s_per_s": sum(response.samples for response in responses) / OUTPUT_SAMPLE_RATE_HZ / seconds,
        "tokens_per_stream": float(np.mean([record.tokens for record in done])) if done else None,
        **spread("client_lag_ms", part.lags_ms),
        **first_stages(steady),
    }


def line(row: dict[str, Any]) -> str:
    """A row in one line."""
    name = f"{row['task']:>4} {row['mode']:>7} {row['streams']:>3} streams"
    if "skipped" in row:
        return f"{name}: {row['skipped']}"

    def pair(key: str, digits: int = 0) -> str:
        return f"{number(row[f'{key}_p50'], digits)}/{number(row[f'{key}_p95'], digits)}"

    stages = " ".join(f"{stage} {number(row[f'first_{stage}_ms'], 1)}" for stage in (*STAGES, "hops"))
    return (
        f"{name}: TTFA {pair('ttfa_ms')} ms, first sample {pair('first_sample_ms')}, RTF {pair('rtf', 3)}, "
        f"{number(row['tokens_per_s'])} tok/s, {number(row['audio_s_per_s'], 1)} audio s/s, underruns "
        f"{row['underruns']} in {100 * (row['underrun_streams'] or 0):.0f} % of streams ({row['underrun_s']:.2f} s), "
        f"{row['done']} done {row['cut']} cut {row['failed']} failed | {stages} | "
        f"client lag {number(row['client_lag_ms_p95'], 1)} ms | "
        f"{row['left_behind']} left {row['all_gone_ms']:.0f} ms after the cut"
    )
