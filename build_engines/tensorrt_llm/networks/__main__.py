"""Defines or builds the TensorRT-LLM networks.

TRTLLM_SRC=DIR python -m build_engines.tensorrt_llm.networks dry_run --size 7b
python -m build_engines.tensorrt_llm.networks build --part backbone --checkpoint DIR --tokenizer FILE --out DIR
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from build_engines.command import errors_reported
from build_engines.tensorrt_llm.config_file import config_fields
from build_engines.tensorrt_llm.layout import Part
from build_engines.tensorrt_llm.networks.build import build_engine, load_network, network
from build_engines.tensorrt_llm.networks.options import NetworkOptions
from build_engines.tensorrt_llm.plan import Plan
from vita_audio.checkpoint.sizes import SIZES
from vita_audio.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from build_engines.tensorrt_llm.networks.dry_run import Definition

app = typer.Typer(add_completion=False, help="TensorRT-LLM networks of the language model.", no_args_is_help=True)
_out = Console(highlight=False, soft_wrap=True)

#: Fields of the attention plugin that the runtime relies on.
_ATTENTION_FIELDS = (
    "num_heads",
    "num_kv_heads",
    "head_size",
    "rotary_embedding_base",
    "tokens_per_block",
    "paged_kv_cache",
    "use_paged_context_fmha",
    "context_fmha_type",
    "remove_input_padding",
    "max_context_length",
)


class Size(str, Enum):
    released = "7b"
    tiny = "tiny"


MaxStreams = Annotated[int, typer.Option(help="Streams of one step.")]
MaxLength = Annotated[int, typer.Option(help="Tokens of one stream.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens of one step; bounds a prefill chunk.")]
PromptRows = Annotated[int, typer.Option(help="Rows of the prompt embedding table (Plus variant); 0: none.")]
HeadFirstId = Annotated[int, typer.Option(help="First id of the MCTP head; 0: full head.")]


@app.command("dry_run")
def dry_run(
    size: Annotated[Size, typer.Option(help="Sizes to define.")] = Size.released,
    max_batch_size: MaxStreams = 64,
    max_seq_len: MaxLength = 4096,
    max_num_tokens: MaxTokens = 2048,
    prompt_table_rows: PromptRows = 0,
    head_first_id: HeadFirstId = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Converted checkpoint with backbone/ and mctp/: its sizes and weights.")
    ] = None,
    compile_engines: Annotated[bool, typer.Option("--compile", help="Compile too; only for small sizes.")] = False,
) -> None:
    """Define both networks on a CPU from the sources TRTLLM_SRC names, and print what they are."""
    from build_engines.tensorrt_llm.networks import cpu_sources

    with errors_reported():
        cpu_sources.install()
        from build_engines.tensorrt_llm.networks.dry_run import TINY, define

        options = NetworkOptions(max_batch_size, max_seq_len, max_num_tokens, prompt_table_rows, head_first_id)
        config = TINY if size is Size.tiny else SIZES[size.value].language_model
        for part in Part:
            if checkpoint is None:
                model = network(part.value, config_fields(Plan(part, config)), options)
            else:
                model = load_network(part.value, checkpoint / part.value, options)
            _report(define(part.value, model, options, compile_engines))


@app.command("build")
def build(
    part: Annotated[Part, typer.Option(help="Which engine.")],
    checkpoint: Annotated[Path, typer.Option(help="TensorRT-LLM checkpoint of that part.")],
    out: Annotated[Path, typer.Option(help="Folder of the engine.")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json: rows beyond its tokens never come out.")],
    max_batch_size: MaxStreams = 64,
    max_seq_len: MaxLength = 4096,
    max_num_tokens: MaxTokens = 2048,
    prompt_table_rows: PromptRows = 0,
    rank: Annotated[int, typer.Option(help="Rank of tensor parallelism.")] = 0,
) -> None:
    """Build one rank of one engine, in the container with TensorRT-LLM 1.2.1 (not run on a GPU yet)."""
    with errors_reported(ValueError, KeyError):
        vocab_size = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        banned = tuple(Vocabulary.from_tokenizer(tokenizer).banned_ids(vocab_size))
        options = NetworkOptions(max_batch_size, max_seq_len, max_num_tokens, prompt_table_rows, banned_ids=banned)
        build_engine(part.value, checkpoint, out, options, rank)


def _report(definition: Definition) -> None:
    d = definition
    plugins = ", ".join(f"{count} {name}" for name, count in d.plugins.items())
    _out.print(f"{d.part}: {d.layers} layers, {d.parameters / 1e9:.3f} G parameters, plugins: {plugins}", markup=False)
    for tensor in d.inputs:
        shape = str(list(tensor.shape))
        line = f"  in   {tensor.name:<32}{tensor.dtype:<7}{shape:<18} up to {list(tensor.largest)}"
        _out.print(line, markup=False)
    for tensor in d.outputs:
        _out.print(f"  out  {tensor.name:<32}{tensor.dtype:<7}{list(tensor.shape)}", markup=False)
    fields = ", ".join(f"{name} {d.attention[name][0]:g}" for name in _ATTENTION_FIELDS)
    _out.print(f"  attention plugin: {fields}", markup=False)
    compiled = "" if d.engine_bytes is None else f", compiled to {d.engine_bytes / 1e6:.1f} MB"
    _out.print(f"  {d.seconds:.1f} s{compiled}; peak memory of the process {d.peak_mib:.0f} MiB", markup=False)


if __name__ == "__main__":
    app()
