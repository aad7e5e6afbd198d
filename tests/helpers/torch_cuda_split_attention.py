"""Split attention against PyTorch's attention: run by a test under Triton's interpreter, and on a GPU as it is."""

from __future__ import annotations

import torch

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.engines.torch_cuda.network import Spans, attend_rectangle
from vita_audio.engines.torch_cuda.shapes import Shape
from vita_audio.engines.torch_cuda.weights import load_weights
from vita_audio.models.language_model import LanguageModel

SLOTS, CONTEXT, ROWS, STREAM_ROWS = 5, 300, 26, 16
#: (slot, first position, rows): one row at the start, many far in, some in between.
CALLS = ((3, 0, 1), (1, 250, 11), (4, 7, 12))
#: (heads, kv heads, head dim, processors): few and many splits, head sizes that are no power of two.
SIZES = ((4, 2, 16, 16), (7, 1, 24, 1), (5, 1, 10, 300), (6, 2, 64, 36))


def largest_difference(size: tuple[int, int, int, int], device: str, dtype: torch.dtype) -> float:
    from vita_audio.engines.torch_cuda.split_attention import attend_split  # Triton is not everywhere

    heads, kv_heads, dim, processors = size
    torch.manual_seed(0)
    place, position = [len(CALLS) * STREAM_ROWS] * ROWS, [0] * ROWS
    first = []
    rows = 0
    for i, (_, start, count) in enumerate(CALLS):
        first.append(rows)
        place[rows : rows + count] = range(i * STREAM_ROWS, i * STREAM_ROWS + count)
        position[rows : rows + count] = range(start, start + count)
        rows += count
    slots, starts, counts = zip(*CALLS, strict=True)
    columns = (slots, first, counts, starts, place, position, position)
    spans = Spans(*(torch.tensor(column, device=device) for column in columns))
    shape = Shape(ROWS, len(CALLS), STREAM_ROWS, CONTEXT, True)
    cache = torch.randn(SLOTS * CONTEXT + 1, 2, kv_heads, dim, device=device).to(dtype)
    q = torch.randn(ROWS, heads + kv_heads, dim, device=device).to(dtype)[:, :heads]
    expected = attend_rectangle(shape, spans, SLOTS, heads // kv_heads)(q, cache)[:rows]
    made = attend_split(shape, spans, CONTEXT, processors)(q, cache)[:rows]
    return float((made.float() - expected.float()).abs().max())


def engine_tokens(attention: str) -> list[list[int]]:
    """A prompt, then bursts with a rewind, of two slots of an engine on the CPU."""
    from vita_audio.engines.interface import BurstRow, ExtendRow, Sampling
    from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
    from vita_audio.engines.torch_cuda.settings import Settings

    config, cpu = LanguageModelConfig(60, 32, 48, 1 + 2, 4, 2, 2, 64), torch.device("cpu")
    torch.manual_seed(1)
    weights = load_weights(config, LanguageModel(config).state_dict(), cpu, torch.float32)
    engine = TorchCudaLanguageModel(config, weights, Settings(2, 64, attention=attention))  # type: ignore[arg-type]
    prompts = [[7, 3, 9, 1, 4], [5, 8]]
    for slot in range(2):
        engine.begin(slot, Sampling(temperature=1.0, top_k=20, seed=slot))
    first = engine.extend([ExtendRow(slot, 0, prompt, 0) for slot, prompt in enumerate(prompts)])
    rows = [
        BurstRow(slot, 0, len(prompt), [*prompt[1:], token or 0], 1, 1)
        for slot, (prompt, token) in enumerate(zip(prompts, first, strict=True))
    ]
    return [[token or 0 for token in first], *engine.burst(rows), *engine.burst(rows)]


if __name__ == "__main__":
    from triton_interpreter import define_once

    define_once()
    assert engine_tokens("split") == engine_tokens("rectangle")
    for size in SIZES:
        difference = largest_difference(size, "cpu", torch.float32)
        assert difference < 1e-5, (size, difference)
