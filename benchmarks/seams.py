"""How the chunk boundaries of streamed speech compare with the rest of it, and with the one-shot decode.

    python -m benchmarks.seams --engines engines/cpu
    python -m benchmarks.seams --engines engines/cpu --speech examples/question.wav

Decodes audio codes (random ones, or those of spoken words) as a stream and in one window, with several settings of
the decoder. "jump" and "flux" at the seams should be like those of the points in between; so should the distance.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from benchmarks.record import Results, record_head
from vita_audio.contract.errors import VitaError
from vita_audio.contract.rates import TOKENS_PER_SECOND
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.decoding.seams import compare, stream_all
from vita_audio.engines.onnxruntime.audio import OnnxFlow, OnnxVocoder
from vita_audio.engines.onnxruntime.speech_tokenizer import OnnxSpeechTokenizer
from vita_audio.speech_features import speech_tokens, to_16_khz

SETTINGS = {
    "default": DecoderConfig(),
    "no fade": DecoderConfig(flow_fade_frames=0),
    "no flow hold-back": DecoderConfig(flow_hold_back_frames=0, flow_fade_frames=0),
    "context 10 tokens": DecoderConfig(context_tokens=10),
    "context 60 tokens": DecoderConfig(context_tokens=60),
    "chunks 10 tokens": DecoderConfig(chunk_tokens=(10,)),
    "chunks 20 tokens": DecoderConfig(chunk_tokens=(20,)),
    "vocoder hold-back 10": DecoderConfig(vocoder_hold_back_frames=10),
    "2 flow steps": DecoderConfig(flow_steps=2),
    "10 flow steps": DecoderConfig(flow_steps=10),
}


def spoken_codes(engines: Path, wav: Path) -> list[int]:
    """Audio codes of a sound file."""
    samples, rate_hz = soundfile.read(wav, dtype="float32", always_2d=True)
    tokenizer = OnnxSpeechTokenizer(engines)
    return [int(code) for code in speech_tokens(tokenizer, to_16_khz(samples.mean(axis=1), rate_hz))]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, required=True, help="folder made by python -m build_engines")
    parser.add_argument("--speech", type=Path, help="decode the codes of this sound file instead of random ones")
    parser.add_argument("--tokens", type=int, default=150, help="number of random codes (default 150)")
    parser.add_argument("--seeds", type=int, default=2, help="streams per setting (default 2)")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON here")
    options = parser.parse_args(arguments)
    results = Results(options.out, {**record_head("benchmarks.seams", arguments), "rows": []})
    console = Console()
    try:
        flow, vocoder = OnnxFlow(options.engines), OnnxVocoder(options.engines)
        codes = np.random.default_rng(0).integers(0, flow.vocab_size, options.tokens).tolist()
        if options.speech is not None:
            codes = spoken_codes(options.engines, options.speech)
    except (VitaError, soundfile.LibsndfileError) as error:
        console.print(f"[red]{error}")
        return 1
    table = Table(title=f"Seams: {len(codes)} tokens, {options.seeds} streams each", caption=results.fields["machine"])
    table.add_column("setting")
    table.add_column("where")
    for column in ("points", "jump", "jump p95", "flux dB", "flux p95", "distance dB", "RTF"):
        table.add_column(column, justify="right")
    for name, config in SETTINGS.items():
        decoder = StreamingDecoder(flow, vocoder, config)
        start = time.perf_counter()
        stream_all(decoder, codes, 0)
        factor = (time.perf_counter() - start) * TOKENS_PER_SECOND / len(codes)
        for kind, measured in compare(decoder, codes, range(options.seeds)).items():
            if not len(measured.jump):
                continue
            numbers = {
                "jump": float(measured.jump.mean()),
                "jump_p95": float(np.quantile(measured.jump, 0.95)),
                "flux_db": float(measured.flux_db.mean()),
                "flux_db_p95": float(np.quantile(measured.flux_db, 0.95)),
                "distance_db": float(measured.distance_db.mean()),
            }
            first = kind == "flow seams"
            row = {"setting": name, "where": kind, "points": len(measured.jump), **numbers, "rtf": factor}
            results.save(rows=[*results.fields["rows"], row])
            table.add_row(
                name if first else "",
                kind,
                str(len(measured.jump)),
                *(f"{number:.2f}" for number in numbers.values()),
                f"{factor:.3f}" if first else "",
                end_section=kind == "interior",
            )
    console.print(table)
    console.print(
        "jump: step at the point over the rms step within 10 ms; flux: spectra of the 10 ms before and after it; "
        "distance: spectra of stream and one-shot decode within 10 ms; RTF: decoding time over audio time, one stream."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
