"""What to generate: counts per task, voices, variation of the input voices."""

from __future__ import annotations

from dataclasses import dataclass, fields

from training.errors import TrainingError
from training.limits import range_faults

VOICES = ("slt", "rms", "awb", "kal16")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Counts are samples of an epoch of the train split; `test_*` those of the test split, on content never trained on.

    epochs: how many times the train split is drawn, each time with other texts, questions, voices and noise; the sounds
    of fewer epochs are kept when there are more. first_epoch: how many are left out at the start, since the model that
    is trained further has seen them.
    tts, asr: sentences to be spoken and to be written down. spoken_chat, typed_chat: questions answered in speech.
    text: questions answered in writing. asr_questions: spoken questions that also serve as ASR samples, and
    copies: typed words in free order, written again: copying words comes before answering with them.
    spoken_dialogues, typed_dialogues: of several turns, answered in speech; text_dialogues: typed, answered in writing.
    asr_dialogues: of the spoken ones, turns that also serve as ASR samples. tts_long: two or three sentences to read;
    those of test_tts_long are sentences of test_tts and test_asr.
    tts_answers: spoken answers that also serve as TTS samples (no new sound). tts_questions: questions that the output
    voice reads aloud, so that it learns more than statements.
    clean_share: input clips without noise. stretch: bounds of the duration factor. gain_db: bounds of the level.
    snr_db: bounds of the signal-to-noise ratio. held_out_facts: share of the facts of rule-based families (sums,
    spelling, ...) that only the test split asks about. held_out_questions: share of (fact, wording) pairs.
    held_out_dialogues: share of the threads of dialogues (`dialogues.Thread`).
    processes: synthesisers at once; the result does not depend on it.
    """

    seed: int = 3
    epochs: int = 1
    first_epoch: int = 0
    tts: int = 12_000
    asr: int = 12_000
    spoken_chat: int = 24_000
    typed_chat: int = 6_000
    text: int = 3_000
    asr_questions: int = 8_000
    tts_answers: int = 4_000
    tts_questions: int = 0
    copies: int = 0
    spoken_dialogues: int = 0
    typed_dialogues: int = 0
    text_dialogues: int = 0
    asr_dialogues: int = 0
    tts_long: int = 0
    test_tts: int = 400
    test_asr: int = 400
    test_spoken_chat: int = 800
    test_typed_chat: int = 200
    test_text: int = 100
    test_spoken_dialogues: int = 0
    test_text_dialogues: int = 0
    test_tts_long: int = 0
    output_voice: str = "slt"
    input_voices: tuple[str, ...] = VOICES
    clean_share: float = 0.3
    stretch: tuple[float, float] = (0.85, 1.15)
    gain_db: tuple[float, float] = (-15.0, 0.0)
    snr_db: tuple[float, float] = (15.0, 40.0)
    held_out_facts: float = 0.05
    held_out_questions: float = 0.05
    held_out_dialogues: float = 0.1
    processes: int = 2

    def __post_init__(self) -> None:
        """Raises TrainingError naming every field that is wrong."""
        ranges: dict[str, tuple[float, float | None]] = {
            **{field.name: (0, None) for field in fields(self) if field.type == "int"},
            **dict.fromkeys(("processes", "epochs"), (1, None)),
            "clean_share": (0, 1),
            **dict.fromkeys(("held_out_facts", "held_out_questions", "held_out_dialogues"), (0, 0.5)),
            "stretch": (0.5, 2),
            "gain_db": (-40, 0),
            "snr_db": (0, 80),
        }
        faults = [f"data.{fault}" for fault in range_faults(self, ranges)]
        unknown = sorted({self.output_voice, *self.input_voices} - set(VOICES))
        if unknown:
            faults.append(f"data voices: {', '.join(unknown)} unknown; flite has {', '.join(VOICES)}")
        if not self.input_voices:
            faults.append("data.input_voices: empty; name at least one voice")
        if faults:
            raise TrainingError("\n".join(faults))
