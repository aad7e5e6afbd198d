"""Command-line options that `build` and `plan` share: their names and help, once."""

from __future__ import annotations

from typing import Annotated

import typer

ContextTokens = Annotated[int, typer.Option(help="Most tokens of prompt and answer together.")]
Engine = Annotated[
    str, typer.Option(help="tensorrt_llm, or torch_cuda: CUDA graphs in PyTorch, nothing to compile (gpu).")
]
Format = Annotated[str, typer.Option(help="Linear layers of the backbone: bf16, fp8 or w4a16 (gpu).")]
MctpFormat = Annotated[str, typer.Option(help="Those of the MCTP modules; as --format without it (gpu).")]
Fp8KvCache = Annotated[bool, typer.Option("--fp8-kv-cache", help="8-bit KV cache; both formats fp8 (gpu).")]
Tp = Annotated[int, typer.Option(help="GPUs that share the model: 1, 2, 4 (gpu).")]
Streams = Annotated[int, typer.Option(help="Most streams at the same time (gpu).")]
StepTokens = Annotated[int, typer.Option(help="Most tokens of one step, all streams together (gpu).")]
Head = Annotated[str, typer.Option(help="Ids of the MCTP head: full, audio, or auto: by the checkpoint's mode (gpu).")]
Candidates = Annotated[int, typer.Option(help="Largest top-k that MCTP modules draw from (gpu).")]
AudioBatch = Annotated[int, typer.Option(help="Windows of one call of an audio engine (gpu).")]
