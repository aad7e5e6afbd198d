"""SenseVoice's network as a GPU runs it: `models.sensevoice` over clips that are padded to a number of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio.engines.torch.audio import tensor_float_32
from vita_audio.engines.torch_cuda.kernels.audio_operations import AudioOperations
from vita_audio.models.sensevoice import QUERY_ROWS, EncoderLayer, SenseVoice, sinusoids


class ClipEncoder:
    """Clips of features -> their embeddings. What pads a clip changes none of them: no row attends to it, and the
    memory's convolution sees zeros there, as it does behind a clip.

    Products, attention and the memory are in `dtype`; the residual stream and its norms are float32.

    Args:
        model: float32; its weights are copied.
        most_rows: of a clip, queries included.
        dtype: see above.
        tf32: whether products of float32 may round their operands.
        operations: reference or kernels.
    """

    def __init__(
        self, model: SenseVoice, most_rows: int, dtype: torch.dtype, tf32: bool, operations: AudioOperations
    ) -> None:
        encoder, projector, self._dtype, self._tf32 = model.tower.encoder, model.projector, dtype, tf32
        self._norm, self._scale = operations.layer_norm, model.tower.scale
        embed = model.tower.embed.weight
        self._table = sinusoids(most_rows, embed.shape[1], embed.dtype).to(embed.device)
        self._index = torch.arange(most_rows, device=embed.device)
        queries = torch.cat([embed[row : row + 1] for row in QUERY_ROWS])
        self._queries = queries * self._scale + self._table[: len(QUERY_ROWS)]
        #: Layers, and the norm that follows them.
        self._stacks = [
            (_layers((*encoder.encoders0, *encoder.encoders), dtype), _norm_of(encoder.after_norm)),
            (_layers(encoder.tp_encoders, dtype), _norm_of(encoder.tp_norm)),
        ]
        self._projector_norm = _norm_of(projector.pre_proj_layernorm)
        self._up, self._down = (one.weight.to(dtype) for one in projector.mlp if isinstance(one, nn.Linear))

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """float32 [B, rows + 4, embedding_size].

        Args:
            inputs: features float32 [B, rows, input_size]; rows int64 [B, 1], of each clip.
        """
        features = inputs["features"]
        count = features.shape[1] + len(QUERY_ROWS)
        valid = self._index[:count] < inputs["rows"] + len(QUERY_ROWS)  # [B, T]
        allowed, kept = valid[:, None, None], valid[:, :, None].to(self._dtype)
        with tensor_float_32(self._tf32):
            x = features * self._scale + self._table[len(QUERY_ROWS) : count]
            x = torch.cat((self._queries.expand(len(x), -1, -1), x), dim=1)
            made: Tensor | None = None
            for layers, end in self._stacks:
                for layer in layers:
                    x, normed = self._norm(x, *layer.norm1, made)
                    made = layer.attend(normed.to(self._dtype), allowed, kept)
                    x, made = (x, made) if layer.residual else (made.float(), None)
                    x, normed = self._norm(x, *layer.norm2, made)
                    made = layer.feed(normed.to(self._dtype))
                x, made = self._norm(x, *end, made)[1], None
            normed = self._norm(x, *self._projector_norm)[1].to(self._dtype)
            return F.linear(F.gelu(F.linear(normed, self._up)), self._down).float()


class _Layer:
    """`EncoderLayer` between its norms."""

    def __init__(self, layer: EncoderLayer, dtype: torch.dtype) -> None:
        attention, feed = layer.self_attn, layer.feed_forward
        self.residual, self._heads, self._pads = layer.residual, attention.heads, attention.pads
        self._qkv, self._out, self._up, self._down = (
            (one.weight.to(dtype), one.bias.to(dtype))
            for one in (attention.linear_q_k_v, attention.linear_out, feed.w_1, feed.w_2)
        )
        memory = attention.fsmn_block.weight.clone()  # [width, 1, kernel]
        memory[:, :, self._pads[0]] += 1  # the values themselves are added to it
        self._memory = memory.to(dtype)
        self.norm1, self.norm2 = _norm_of(layer.norm1), _norm_of(layer.norm2)

    def attend(self, x: Tensor, allowed: Tensor, kept: Tensor) -> Tensor:
        """x [B, T, input]; allowed, bool [B, 1, 1, T]; kept [B, T, 1], 0 for padding -> [B, T, width], contiguous."""
        q, k, v = F.linear(x, *self._qkv).chunk(3, dim=2)
        values = F.pad((v * kept).transpose(1, 2), self._pads)
        memory = F.conv1d(values, self._memory, groups=len(self._memory)).transpose(1, 2)
        q, k, v = (part.unflatten(2, (self._heads, -1)).transpose(1, 2) for part in (q, k, v))  # [B, heads, T, d]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return F.linear(mixed.transpose(1, 2).flatten(2), *self._out).add_(memory)

    def feed(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, *self._up).relu_(), *self._down)


def _layers(layers: Iterable[nn.Module], dtype: torch.dtype) -> list[_Layer]:
    return [_Layer(layer, dtype) for layer in layers]  # type: ignore[arg-type]


def _norm_of(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps
