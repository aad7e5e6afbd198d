"""Backbone and MCTP on ONNX Runtime (CPU): caches updated in place, one graph run per backbone step and per burst.

Every slot owns one region of preallocated cache. Single-row steps of several streams run as one batch over the slots
up to the highest one in use: GroupQueryAttention takes ragged lengths there. Runs of several rows go stream by stream,
because the operator refuses a batch with several rows and a past (docs/onnx.md). MatMul results do not depend on the
number of rows, so a stream's tokens are the same alone and in any batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.cached_tokens import SlotEngine
from vita_audio.engines.interface import BurstRow, ExtendRow, Floats, Sampling
from vita_audio.engines.onnxruntime.session import open_session
from vita_audio.engines.sampling import uniforms


class OnnxLanguageModel(SlotEngine):
    """`LanguageModelEngine` over the graphs of `build_engines.onnxruntime.language_model`.

    Args:
        folder: holds backbone.onnx, mctp.onnx (K > 0) and model.json.
        slots: streams that may be open at once.
        context: tokens a slot holds; memory is touched only as streams grow.
        threads: intra-op threads of ONNX Runtime.

    Raises:
        EngineError: a file is missing or does not load.
    """

    def __init__(self, folder: Path, slots: int, context: int, threads: int = 1) -> None:
        try:
            self.config = LanguageModelConfig(**json.loads((folder / "model.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise EngineError(f"{folder / 'model.json'}: not readable ({error}); rebuild the engines") from error
        super().__init__(slots, context, self.config.mctp_modules, self.config.vocab_size)
        self._backbone = _Graph(folder / "backbone.onnx", self.config.backbone_layers, self, threads)
        self.embedded_size = self.config.hidden_size if "embedded" in self._backbone.inputs else 0  # a Plus build
        self._mctp = _Graph(folder / "mctp.onnx", self.mctp_modules, self, threads) if self.mctp_modules else None
        self._hidden: Floats = np.zeros((slots, context, self.config.hidden_size), np.float32)  # H0 of each position
        self._seen = [_SeenIds() for _ in range(slots)]
        self._sampling = [Sampling() for _ in range(slots)]
        self._first_rows: dict[int, list[np.ndarray]] = {}  # row 0 of the caches of released slots

    def _begin(self, slot: int, sampling: Sampling, kept: Sequence[int]) -> None:
        for cache, row in zip(self._backbone.caches.values(), self._first_rows.pop(slot, ()), strict=False):
            cache[slot, :, 0] = row
        self._seen[slot] = _SeenIds()
        self._seen[slot].add(kept)
        self._sampling[slot] = sampling

    def release(self, slot: int) -> None:
        super().release(slot)
        # Batches park a released slot at row 0, which costs them least and overwrites it.
        self._first_rows[slot] = [cache[slot, :, 0].copy() for cache in self._backbone.caches.values()]

    def _extend(self, rows: Sequence[ExtendRow]) -> list[int | None]:
        tokens: list[int | None] = [None] * len(rows)
        for row in rows:
            self._seen[row.slot].add(row.tokens)
        single = [i for i, row in enumerate(rows) if len(row.tokens) == 1]
        if len(single) > 1:
            for i, token in zip(single, self._extend_batch([rows[i] for i in single]), strict=True):
                tokens[i] = token
        for i, row in enumerate(rows):
            if len(single) <= 1 or len(row.tokens) > 1:
                tokens[i] = self._extend_one(row)
        return tokens

    def _extend_one(self, row: ExtendRow) -> int | None:
        slot, stop = row.slot, row.start + len(row.tokens)
        graph = self._backbone
        graph.feed("tokens", np.array([row.tokens], np.int64))
        self._feed_embedded([row], [0])
        graph.feed_sampling(self._seen[slot : slot + 1], [self._sampling[slot]], [row.index], 1)
        hidden, token = graph.run(slot, 1, np.array([stop - 1], np.int32), stop, ("hidden", "token"))
        self._hidden[slot, row.start : stop] = hidden[0]
        return None if row.index is None else self._commit(slot, int(token[0, 0]))

    def _extend_batch(self, rows: Sequence[ExtendRow]) -> list[int | None]:
        """One row each of several slots, as one batch over slots [0, highest]. Slots without work rerun at the end of
        their cache: that row is overwritten by their next step."""
        batch = max(row.slot for row in rows) + 1
        tokens = np.zeros((batch, 1), np.int64)
        parked = [0 if slot in self._first_rows else self.cached.length(slot) for slot in range(batch)]
        last_row = np.minimum(parked, self.context - 1)
        index: list[int | None] = [None] * batch
        for row in rows:
            tokens[row.slot], last_row[row.slot], index[row.slot] = row.tokens, row.start, row.index
        graph = self._backbone
        graph.feed("tokens", tokens)
        self._feed_embedded(rows, [row.slot for row in rows])
        graph.feed_sampling(self._seen[:batch], self._sampling[:batch], index, 1)
        hidden, token = graph.run(0, batch, last_row, int(last_row.max()) + 1, ("hidden", "token"))
        sampled: list[int | None] = []
        for row in rows:
            self._hidden[row.slot, row.start] = hidden[row.slot, 0]
            sampled.append(None if row.index is None else self._commit(row.slot, int(token[row.slot, 0])))
        return sampled

    def _feed_embedded(self, rows: Sequence[ExtendRow], streams: Sequence[int]) -> None:
        """`streams`: which of the batch each row is."""
        if not self.embedded_size:
            return
        places, embedded = [np.zeros((0, 2), np.int64)], [np.zeros((0, self.embedded_size), np.float32)]
        for stream, row in zip(streams, rows, strict=True):
            if row.embedded is not None:
                places.append(np.stack([np.full_like(row.embedded.places, stream), row.embedded.places], axis=1))
                embedded.append(row.embedded.rows)
        self._backbone.feed("places", np.concatenate(places))
        self._backbone.feed("embedded", np.concatenate(embedded))

    def _commit(self, slot: int, token: int) -> int:
        self._seen[slot].add((token,))
        return token

    def _burst(self, rows: Sequence[BurstRow]) -> list[list[int]]:
        return [self._burst_one(row) for row in rows]

    def _burst_one(self, row: BurstRow) -> list[int]:
        graph, modules, count = self._mctp, self.mctp_modules, row.stop - row.start
        assert graph is not None  # `cached.burst` has refused a checkpoint without modules
        tokens = np.array([row.tokens], np.int64)
        forced = np.full((1, modules), -1, np.int64)
        if row.index is None:  # what the last module samples is not read
            forced[0, : modules - 1] = tokens[0, count:]
        graph.feed("tokens", tokens[:, :count])
        graph.feed("forced", forced)
        graph.feed("hidden", self._hidden[row.slot : row.slot + 1, row.start : row.stop])
        slot = row.slot
        graph.feed_sampling(self._seen[slot : slot + 1], [self._sampling[slot]], [row.index], modules)
        (sampled,) = graph.run(slot, 1, np.array([row.stop - 1], np.int32), row.stop, ("sampled",))
        if row.index is None:
            return []
        return [self._commit(slot, int(token)) for token in sampled[0, : row.commit]]


class _SeenIds:
    """The distinct ids of a stream's prompt and output, for the repetition penalty."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._ids = np.zeros(64, np.int64)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, ids: Sequence[int]) -> None:
        for token in ids:
            if token not in self._known:
                if len(self._known) == len(self._ids):
                    self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._ids[len(self._known)] = token
                self._known.add(token)

    def padded(self, width: int) -> np.ndarray:
        """[width], filled up with the first id: the graph does not mind repeats."""
        count = len(self._known)
        return (
            self._ids[:width]
            if count == width
            else np.concatenate([self._ids[:count], np.full(width - count, self._ids[0])])
        )


class _Graph:
    """One ONNX Runtime session with its caches, bound in place once per batch shape."""

    def __init__(self, path: Path, layers: int, engine: OnnxLanguageModel, threads: int) -> None:
        config = engine.config
        self._session = open_session(path, threads)
        self.inputs = {i.name: i.shape for i in self._session.get_inputs()}
        padded = self.inputs["cos"][1] * 2
        shape = (engine.slots, config.num_key_value_heads, engine.context, padded)
        # Untouched pages of np.zeros cost no memory: a long context is paid for only by streams that use it.
        self.caches = {f"{kind}_{i}": np.zeros(shape, np.float32) for i in range(layers) for kind in ("key", "value")}
        inverse = config.rope_theta ** -(np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim)
        angle = np.arange(engine.context, dtype=np.float32)[:, None] * inverse
        pad = [(0, 0), (0, padded // 2 - angle.shape[1])]
        self._cos, self._sin = np.pad(np.cos(angle), pad), np.pad(np.sin(angle), pad)
        self._vocab = config.vocab_size
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self._fed: dict[str, np.ndarray] = {}

    def _binding(self, first: int, batch: int) -> ort.IOBinding:
        binding = self._bindings.get((first, batch))
        if binding is None:
            binding = self._session.io_binding()
            binding.bind_cpu_input("cos", self._cos)
            binding.bind_cpu_input("sin", self._sin)
            for name, cache in self.caches.items():
                part = cache[first : first + batch]  # contiguous: slots are the first axis
                place = ("cpu", 0, np.float32, part.shape, part.ctypes.data)
                binding.bind_input(f"past_{name}", *place)
                binding.bind_output(f"present_{name}", *place)
            self._bindings[first, batch] = binding
        return binding

    def feed(self, name: str, value: np.ndarray) -> None:
        self._fed[name] = np.ascontiguousarray(value)

    def feed_sampling(
        self, seen: Sequence[_SeenIds], samplings: Sequence[Sampling], index: Sequence[int | None], draws: int
    ) -> None:
        """Sampling inputs of a batch; the token of a row without index is not read."""
        top_k = [1 if s.greedy or i is None else s.top_k or self._vocab for s, i in zip(samplings, index, strict=True)]
        width = max(len(ids) for ids in seen)
        self.feed("seen", np.stack([ids.padded(width) for ids in seen]))
        self.feed("penalty", np.array([[s.repetition_penalty] for s in samplings], np.float32))
        self.feed("temperature", np.array([[s.temperature or 1.0] for s in samplings], np.float32))
        self.feed("top_k", np.array([[min(k, self._vocab)] for k in top_k], np.int64))
        self.feed("top_p", np.array([[s.top_p] for s in samplings], np.float32))
        self.feed("candidates", np.array([min(max(top_k), self._vocab)], np.int64))
        rows = [
            np.zeros(draws, np.float32) if i is None or s.greedy else uniforms(s.seed, i, draws)
            for s, i in zip(samplings, index, strict=True)
        ]
        self.feed("uniform", np.stack(rows))

    def run(self, first: int, batch: int, last_row: np.ndarray, total: int, outputs: Sequence[str]) -> list[np.ndarray]:
        """Run over slots [first, first + batch); `last_row` [batch] is the cache index of each last row."""
        self.feed("last_row", last_row.astype(np.int32))
        self.feed("total_length", np.array([total], np.int32))
        binding = self._binding(first, batch)
        for name, value in self._fed.items():
            binding.bind_cpu_input(name, value)
        for name in outputs:
            binding.bind_output(name)  # ONNX Runtime allocates
        self._session.run_with_iobinding(binding)
        self._fed.clear()
        # In the order of binding: the caches came first, once and for all.
        return [value.numpy() for value in binding.get_outputs()[len(self.caches) :]]
