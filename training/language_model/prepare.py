"""The part before the stages: text tokenizer from the training text, speech codes, samples as token ids."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from training.audio.speech_codes import WEIGHTS, SpeechCodes, fingerprint
from training.device import pick_device
from training.errors import TrainingError
from training.language_model.batch import Sample
from training.language_model.conversations import Conversation, raise_faults, read_conversations
from training.language_model.samples import SampleBuilder
from training.language_model.settings import LanguageModelTraining
from training.language_model.token_set import TokenSet
from vita_audio.checkpoint.random_weights.tokenizer import write_tokenizer
from vita_audio.text.chat_template import AUDIO_PLACEHOLDER, FIXED_TEXTS, ROLE_LINES
from vita_audio.text.tokenizer import TextTokenizer

CHAT = "chat.jsonl"
TRAIN, TEST, RECORD = "train.npz", "test.npz", "done.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def prepare_tokens(
    config: LanguageModelTraining, data: Path, speech_tokenizer: Path, folder: Path, tokenizer: Path | None = None
) -> Path:
    """Write `folder/{tokenizer.json, tokenizer_config.json, train.npz, test.npz, done.json}` from `data/chat.jsonl`.

    Speech codes are kept in `folder`, so an interrupted run goes on; all other files are made anew.

    Args:
        tokenizer: a language model's folder whose text tokenizer is taken; None learns one from the training text.

    Returns:
        `folder`.

    Raises:
        TrainingError: faulty conversations, samples longer than a stage's packs, a full disk.
    """
    console = Console(soft_wrap=True, highlight=False)
    conversations = {split: read_conversations(data / CHAT, split) for split in ("train", "test")}
    codes = SpeechCodes(speech_tokenizer, folder, pick_device(config.device))
    codes.make((audio for split in conversations.values() for c in split for audio in c.audios), console=console)
    if tokenizer is None:
        texts = list(_texts(conversations["train"]))
        write_tokenizer(folder, config.merges, codes.config.quantize_vocab_size, config.seed, texts)
    else:
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, folder / name)
    text_tokenizer = TextTokenizer(folder / "tokenizer.json")
    vocabulary = text_tokenizer.vocabulary
    if vocabulary.audio_codes != codes.config.quantize_vocab_size:
        raise TrainingError(
            f"{folder / 'tokenizer.json'}: has {vocabulary.audio_codes} audio tokens, but the speech tokenizer "
            f"{codes.config.quantize_vocab_size} codes; take both from one checkpoint"
        )
    builder = SampleBuilder(text_tokenizer, config.trained_mode.pattern)
    longest = min(stage.length for stage in config.stages)
    record: dict[str, object] = {"speech_tokenizer": codes.fingerprint, "tokens": vocabulary.tokens}
    for split, name in (("train", TRAIN), ("test", TEST)):
        tokens = TokenSet.of(*build_samples(conversations[split], builder, codes, longest, data / CHAT))
        tokens.save(folder / name)
        record[split] = describe(tokens)
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    console.print(f"tokens: {record}", markup=False)
    return folder


def is_coded_with(folder: Path, speech_tokenizer: Path) -> bool:
    """Whether the samples in `folder` hold the codes of this tokenizer."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return (speech_tokenizer / WEIGHTS).exists() and record["speech_tokenizer"] == fingerprint(speech_tokenizer)


def build_samples(
    conversations: Sequence[Conversation],
    builder: SampleBuilder,
    codes: SpeechCodes,
    longest: int,
    source: Path,
    skip_long: bool = False,
) -> tuple[list[Sample], list[str]]:
    """Samples of conversations whose audios are tokenised, and their tasks ("chat" where a line has none).

    Args:
        longest: most tokens of a sample.
        skip_long: leave longer ones out instead of refusing the file.

    Raises:
        TrainingError: samples are too long; all are listed.
    """
    samples, tasks, faults = [], [], []
    for conversation in conversations:
        sample = builder.build(conversation, [codes[audio] for audio in conversation.audios])
        if len(sample.ids) > longest:
            faults.append(
                f"{conversation.place}: {len(sample.ids)} tokens, more than {longest}; cut it or raise length"
            )
            continue
        samples.append(sample)
        tasks.append(conversation.task or "chat")
    if not skip_long:
        raise_faults(source, faults)
    return samples, tasks


def describe(tokens: TokenSet) -> dict[str, int]:
    """Samples of each task, and tokens, for a record."""
    counts = Counter(map(str, tokens.tasks))
    return {**dict(sorted(counts.items())), "tokens": len(tokens.ids), "trained_tokens": int(tokens.trained.sum())}


def _texts(conversations: Sequence[Conversation]) -> Iterator[str]:
    """Everything the text tokenizer must write well, cut as it is when samples are built."""
    yield from FIXED_TEXTS
    yield from ROLE_LINES * 10
    for conversation in conversations:
        for message in conversation.messages:
            yield from (part for part in message.content.split(AUDIO_PLACEHOLDER) if part)
