"""The language model under teacher forcing: backbone and MCTP losses over packed samples (docs/audio.md 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from training.language_model.batch import Batch
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.models.language_model import LanguageModel

#: From this many logits on, a level's loss is made chunk by chunk; below, one pass is faster.
_CHUNKED_FROM = 2**28


class LevelLosses(NamedTuple):
    """Per level (0: backbone, k + 1: MCTP k): summed cross-entropy in nats [1 + K], and which greedy tokens are right.

    A level that does not train has a sum of 0. `right`: bool [rows that count] per level, only when asked for.
    """

    sums: Tensor
    right: tuple[Tensor, ...] = ()

    def total(self, tokens: int | Tensor, backbone: bool) -> Tensor:
        """The training loss: main + mean over the MCTP modules, both per trained token of the whole step.

        Args:
            tokens: trained tokens of the step, over all batches and processes it is summed from.
            backbone: whether the backbone's own loss counts; not while it is frozen.
        """
        modules = len(self.sums) - 1
        total = self.sums[1:].sum() / max(1, modules)
        return (total + self.sums[0] if backbone else total) / tokens


class TrainedLanguageModel(LanguageModel):
    """`LanguageModel` whose `forward` gives losses; the weights and their names are the same.

    Args:
        backbone: False freezes everything but the MCTP modules (stages 2 and 3).
        recompute: forget each layer's activations and compute them again in the backward pass.
    """

    def __init__(self, config: LanguageModelConfig, backbone: bool = True, recompute: bool = False) -> None:
        super().__init__(config)
        self.summed_loss: Callable[[Tensor, Tensor, Tensor], Tensor] = summed_loss
        self.trains_backbone = backbone
        if not backbone:
            self.requires_grad_(False)
            for parameter in self.mctp_parameters():
                parameter.requires_grad_(True)
        if recompute:
            for layer in self.model.layers:
                layer.forward = _recomputed(layer)  # type: ignore[method-assign]

    def mctp_parameters(self) -> list[nn.Parameter]:
        """Weights that belong to MCTP modules only."""
        modules = [self.mtp_projs, self.mtp_embed_norms, self.mtp_hidden_norms]
        layers = self.model.layers[self.config.backbone_layers :]
        return [parameter for module in (*modules, layers) for parameter in module.parameters()]

    def backbone_parameters(self) -> list[nn.Parameter]:
        """All other weights."""
        own = {id(parameter) for parameter in self.mctp_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]

    def hidden(self, batch: Batch) -> list[Tensor]:
        """H0 .. HK [rows, hidden]: after the final norm, of the backbone and of each MCTP module."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_backbone):
            levels = [self.backbone(batch.tokens, batch.positions, lambda _: batch.attend)]
        for k in range(self.config.mctp_modules):
            levels.append(self.mctp(k, batch.tokens_of(k), levels[-1], batch.positions, batch.attend))
        return levels

    def forward(self, batch: Batch, score: bool = False) -> LevelLosses:
        """Losses of all levels that train; `score` (without gradients) is of all levels and says what was right."""
        sums, right = [], []
        for level, hidden in enumerate(self.hidden(batch)):
            if level == 0 and not self.trains_backbone and not score:
                sums.append(hidden.new_zeros((), dtype=torch.float32))
                continue
            rows, wanted = batch.targets_of(level)
            chosen = hidden.index_select(0, rows)
            if score:
                logits = self.logits(chosen).float()
                right.append(logits.argmax(1) == wanted)
                sums.append(F.cross_entropy(logits, wanted, reduction="sum"))
            else:
                sums.append(self._cross_entropy(chosen, wanted))
        return LevelLosses(torch.stack(sums), tuple(right))

    def _cross_entropy(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """hidden [rows, hidden], labels [rows] -> summed cross-entropy []."""
        if len(labels) == 0:
            return hidden.sum() * 0.0
        weight = self.lm_head.weight
        if len(labels) * len(weight) < _CHUNKED_FROM:
            return self.summed_loss(hidden, weight, labels)
        device = hidden.device.type
        if torch.is_autocast_enabled(device):  # which lacks this operation
            kind = torch.get_autocast_dtype(device)
            hidden, weight = hidden.to(kind), weight.to(kind)
        options = nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(hidden, weight, labels, reduction="sum", options=options).float()


def summed_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """hidden [rows, hidden], weight [vocab, hidden], labels [rows] -> summed cross-entropy []."""
    return F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")


def _recomputed(layer: nn.Module) -> Callable[..., Tensor]:
    forward = layer.forward
    return lambda *inputs: checkpoint(forward, *inputs, use_reentrant=False)
