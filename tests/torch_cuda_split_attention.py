"""Split attention against PyTorch's attention: run by a test under Triton's interpreter, and on a GPU as it is."""

from __future__ import annotations

import torch

from vita_audio.engines.torch_cuda.network import Shape, Spans, attend_rectangle

SLOTS, CONTEXT, ROWS, STREAM_ROWS = 5, 300, 32, 16
#: (slot, first position, rows): one row at the start, many far in, some in between.
CALLS = ((3, 0, 1), (1, 250, 11), (4, 7, 12))
#: (heads, kv heads, head dim, processors): few and many splits, head sizes that are no power of two.
SIZES = ((4, 2, 16, 64), (7, 1, 24, 1), (5, 1, 10, 300), (14, 2, 64, 132))


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
    slot, start, count = zip(*CALLS, strict=True)
    columns = (slot, first, count, start, place, position, position)
    spans = Spans(*(torch.tensor(column, device=device) for column in columns))
    shape = Shape(ROWS, len(CALLS), STREAM_ROWS, CONTEXT, 1)
    cache = torch.randn(SLOTS * CONTEXT + 1, 2, kv_heads, dim, device=device).to(dtype)
    q = torch.randn(ROWS, heads + kv_heads, dim, device=device).to(dtype)[:, :heads]
    expected = attend_rectangle(shape, spans, SLOTS, heads // kv_heads)(q, cache)[:rows]
    made = attend_split(shape, spans, CONTEXT, processors)(q, cache)[:rows]
    return float((made.float() - expected.float()).abs().max())


if __name__ == "__main__":
    for size in SIZES:
        difference = largest_difference(size, "cpu", torch.float32)
        assert difference < 1e-5, (size, difference)
