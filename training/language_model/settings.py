"""How the language model is trained: sizes and the numbers of the four stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from training.errors import TrainingError
from training.run import RunSettings
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.modes import Mode, parse_mode

#: Tasks of the samples, as in the public contract; dialogue: chat or text of several turns; copy (typed words, said
#: again) is for training alone.
TASKS = ("chat", "tts", "asr", "text", "dialogue", "copy")
OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of the finished model; earlier stages have fewer MCTP modules, the vocabulary follows from the data."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    backbone_layers: int
    mctp_modules: int
    max_position_embeddings: int = 4096
    rope_theta: float = 1e6

    def backbone(self, vocab_size: int) -> LanguageModelConfig:
        """The model without MCTP modules, as the first stage trains it."""
        return LanguageModelConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.backbone_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            num_nextn_predict_layers=0,
            max_position_embeddings=self.max_position_embeddings,
            rope_theta=self.rope_theta,
        )


@dataclass(frozen=True, slots=True)
class Phase:
    """The mixture of some steps."""

    steps: int
    mixture: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StageSettings:
    """One stage.

    Attributes:
        length: tokens of a pack.
        accumulation: packs of a step; on a CPU each of them may have its own core.
        first: phases with mixtures of their own, before `mixture`.
        mixture: how often each epoch holds the samples of a task; tasks that are not named weigh 1.
        token_corruption: share of the speech codes that are replaced where they are read (`corrupt_tokens`).
    """

    run: RunSettings
    length: int = 2048
    accumulation: int = 1
    first: tuple[Phase, ...] = ()
    mixture: Mapping[str, float] = field(default_factory=dict)
    token_corruption: float = 0.0

    @property
    def phases(self) -> list[tuple[int | None, Mapping[str, float]]]:
        """(packs, mixture) of all phases; the last has no end."""
        return [*((phase.steps * self.accumulation, phase.mixture) for phase in self.first), (None, self.mixture)]


@dataclass(frozen=True, slots=True)
class LanguageModelTraining:
    """The four stages (docs/audio.md 8).

    Attributes:
        stage1: alignment: backbone, everything trains.
        stage2: one MCTP module, backbone frozen.
        stage3: all MCTP modules, copies of the one, backbone frozen.
        stage4: fine-tuning: everything trains, MCTP `mctp_rate` times as fast.
        merges: of the text tokenizer.
        mode: boost or balance, whose interleaving is trained.
        held_out_samples: that are scored during training.
        dtype: of the exported weights: float16, bfloat16 or float32.
        device: auto, cpu, cuda or cuda:N.
        workers: packs computed at once on a CPU; 0: one for each core.
        optimizer: adamw, or muon: Muon for the matrices inside layers and projections, AdamW for all other weights.
        local_layers: so many first layers start out with heads that attend to the tokens just before
            (`random_weights`).
        blend: of what stage 4 exports, the share that it trained; the rest are the weights it started from. What was
            learnt before fades less with 0.5 to 0.8 when a finished checkpoint trains on (WiSE-FT, arXiv 2109.01903).
        compile: fuse the arithmetic of each layer (torch.compile; on a CPU it needs a C++ compiler).
    """

    model: ModelSizes
    stage1: StageSettings
    stage2: StageSettings
    stage3: StageSettings
    stage4: StageSettings
    merges: int = 2000
    mode: str = "boost"
    mctp_rate: float = 10.0
    held_out_samples: int = 200
    seed: int = 42
    dtype: str = "float16"
    device: str = "auto"
    workers: int = 0
    optimizer: str = "adamw"
    local_layers: int = 0
    blend: float = 1.0
    compile: bool = False

    def __post_init__(self) -> None:
        """Raises TrainingError naming every field that is wrong."""
        faults = []
        try:
            mode = self.trained_mode
            if min(mode.pattern[::2]) < 1 or min(mode.pattern[1::2]) < 3:
                faults.append(f"mode: {self.mode!r} does not interleave text and audio; take boost or balance")
        except InvalidRequest as error:
            faults.append(f"mode: {error}")
        if self.dtype not in ("float16", "bfloat16", "float32"):
            faults.append(f"dtype: {self.dtype!r} must be float16, bfloat16 or float32")
        if self.optimizer not in OPTIMIZERS:
            faults.append(f"optimizer: {self.optimizer!r} must be {' or '.join(OPTIMIZERS)}")
        if not 0 <= self.local_layers <= self.model.backbone_layers:
            faults.append(f"local_layers: {self.local_layers} must be 0 to {self.model.backbone_layers}")
        if not 0 < self.blend <= 1:
            faults.append(f"blend: {self.blend} must be a share above 0, at most 1")
        for number, stage in enumerate(self.stages, 1):
            if unknown := sorted({task for _, mixture in stage.phases for task in mixture} - set(TASKS)):
                faults.append(f"stage{number}.mixture: {', '.join(unknown)} unknown; tasks are {', '.join(TASKS)}")
            if any(phase.steps < 1 for phase in stage.first):
                faults.append(f"stage{number}.first: {[p.steps for p in stage.first]} must be steps >= 1")
            if not 0 <= stage.token_corruption < 1:
                faults.append(
                    f"stage{number}.token_corruption: {stage.token_corruption} must be a share from 0 to less than 1"
                )
        if faults:
            raise TrainingError("\n".join(f"language_model.{fault}" for fault in faults))

    @property
    def stages(self) -> tuple[StageSettings, ...]:
        return self.stage1, self.stage2, self.stage3, self.stage4

    @property
    def trained_mode(self) -> Mode:
        """The mode whose interleaving is trained. Raises InvalidRequest when it needs more MCTP modules."""
        return parse_mode(self.mode, self.model.mctp_modules)
