"""The speech tokenizer's network as a GPU runs it: `models.speech_tokenizer`, a block of several pieces at a time.

Keys and values of blocks lie in places of one buffer on the device: a block finds those before it by number.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vita_audio.engines.speech_blocks import BlockSizes
from vita_audio.engines.torch.audio import tensor_float_32
from vita_audio.engines.torch_cuda.kernels.audio_operations import AudioOperations
from vita_audio.engines.torch_cuda.row_conv import RowConv
from vita_audio.models.speech_tokenizer import EncoderLayer, SpeechTokenizer


class BlockEncoder:
    """Blocks that begin at the same frame -> ids of their tokens. Shape decides which block of its piece it is.

    Products, attention, keys and values are in `dtype`; the residual stream and its norms are float32, and so are the
    means and the search of the nearest code, without TF32: there two codes are often nearly equally near.

    Args:
        model: float32; its weights are copied.
        sizes: of its blocks.
        places: of blocks, beside place 0 of the rows that fill a batch up.
        dtype: see above.
        tf32: whether products of float32 may round their operands.
        operations: reference or kernels.
    """

    def __init__(
        self,
        model: SpeechTokenizer,
        sizes: BlockSizes,
        places: int,
        dtype: torch.dtype,
        tf32: bool,
        operations: AudioOperations,
    ) -> None:
        self._sizes, self._dtype, self._tf32, self._norm = sizes, dtype, tf32, operations.layer_norm
        self._positions = sizes.frames // 2
        config, codes = model.config, model.codebook.weight
        self._conv1, self._conv2 = (RowConv(conv, dtype) for conv in (model.conv1, model.conv2))
        self._layers = [_Layer(layer, dtype) for layer in model.layers]  # type: ignore[arg-type]
        most = sizes.most_blocks * self._positions
        self._table = F.pad(model.embed_positions.weight, (0, 0, 0, most - config.max_source_positions))
        self._codes, self._code_norms = -2 * codes.t(), codes.pow(2).sum(1)
        index = torch.arange(most, device=codes.device)
        self._index, self._owner = index, index // config.quantize_causal_block_size
        #: [layers, places, positions, 2 width]
        self.state = codes.new_zeros((config.layers, places + 1, self._positions, 2 * config.d_model), dtype=dtype)

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """int64 [B, tokens of a block].

        Args:
            inputs: features float32 [B, mels, context + frames]; valid_positions, positions int64 [B, 1] of the block
                that hold speech, and that there are; places int64 [B, blocks] of the blocks before and of this one.
        """
        places, positions = inputs["places"], self._positions
        before = (places.shape[1] - 1) * positions
        with tensor_float_32(self._tf32):
            x = self._rows(inputs["features"]).float() + self._table[before : before + positions]
            allowed = self._allowed(before, inputs["valid_positions"])
            made: Tensor | None = None
            for layer, state in zip(self._layers, self.state, strict=True):
                x, normed = self._norm(x, *layer.norm1, made)
                made = layer.attend(normed.to(self._dtype), state, places, allowed)
                x, normed = self._norm(x, *layer.norm2, made)
                made = layer.feed(normed.to(self._dtype))
        if made is not None:
            x = x + made
        with tensor_float_32(False):
            return self._quantise(x, inputs["positions"])

    def _rows(self, features: Tensor) -> Tensor:
        """[B, positions, width] of the block's own frames."""
        x = F.gelu(self._conv1(F.pad(features.transpose(1, 2).to(self._dtype), (0, 0, 2, 0))))
        return F.gelu(self._conv2(F.pad(x, (0, 0, 2, 0))))[:, -self._positions :]

    def _allowed(self, before: int, valid: Tensor) -> Tensor:
        """bool [B, 1, positions or 1, before + positions]: speech, in a position's own block or before it."""
        stop = before + self._positions
        # A row that fills the batch up has no speech; what it attends to is not read, but shall be a number.
        allowed = (self._index[:stop] < before + valid.clamp(min=1))[:, None, None]
        if self._positions == self._sizes.block_positions:
            return allowed
        return allowed & (self._owner[:stop] <= self._owner[before:stop, None])

    def _quantise(self, x: Tensor, positions: Tensor) -> Tensor:
        """The nearest code to the mean of each token's positions, with zeros for those that there are not."""
        real = self._index[: self._positions] < positions  # [B, positions]
        means = (x * real[:, :, None]).unflatten(1, (-1, self._sizes.frames_per_token // 2)).mean(2)
        return (self._code_norms + means @ self._codes).argmin(-1)


class _Layer:
    """`EncoderLayer` between its norms."""

    def __init__(self, layer: EncoderLayer, dtype: torch.dtype) -> None:
        attention, width = layer.self_attn, layer.fc1.in_features
        q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
        self._heads, self._width = attention.heads, width
        self._qkv = torch.cat([one.weight for one in (q, k, v)]).to(dtype)
        self._qkv_bias = torch.cat([q.bias, torch.zeros_like(q.bias), v.bias]).to(dtype)
        self._out, self._up, self._down = (
            (one.weight.to(dtype), one.bias.to(dtype)) for one in (attention.out_proj, layer.fc1, layer.fc2)
        )
        self.norm1, self.norm2 = (
            (one.weight, one.bias, one.eps) for one in (layer.self_attn_layer_norm, layer.final_layer_norm)
        )

    def attend(self, x: Tensor, state: Tensor, places: Tensor, allowed: Tensor) -> Tensor:
        """[B, positions, width] -> [B, positions, width]; keeps its keys and values in `state`."""
        q, new = F.linear(x, self._qkv, self._qkv_bias).split((self._width, 2 * self._width), dim=2)
        state[places[:, -1]] = new
        keys_values = state[places].flatten(1, 2).unflatten(2, (2, self._heads, -1))  # [B, keys, 2, heads, d]
        k, v = keys_values.permute(2, 0, 3, 1, 4).unbind()
        q = q.unflatten(2, (self._heads, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return F.linear(mixed.transpose(1, 2).flatten(2), *self._out)

    def feed(self, x: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, *self._up)), *self._down)
