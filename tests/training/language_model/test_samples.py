"""Conversations to token ids: prompts as at inference, interleaved answers, faults named, packs that mix and resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.audio.speech_codes import SpeechCodes
from training.errors import TrainingError
from training.language_model.batch import Sample
from training.language_model.conversations import Conversation, Message, read_conversations
from training.language_model.curriculum import Curriculum
from training.language_model.samples import SampleBuilder
from training.language_model.token_set import PackStream, TokenSet
from training_lm_data import AUDIO, conversation_lines, write_checkpoint, write_conversations, write_lines, write_sound
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.engines.torch.audio import TorchSpeechTokenizer
from vita_audio.speech_features import speech_tokens
from vita_audio.text.chat_template import ASR_INSTRUCTION, TTS_INSTRUCTION, PromptBuilder
from vita_audio.text.interleave import interleave
from vita_audio.text.tokenizer import TextTokenizer

BOOST = NAMED_MODES["boost"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("lm") / "checkpoint")


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> TextTokenizer:
    return TextTokenizer(checkpoint / "language_model" / "tokenizer.json")


def talk(*messages: tuple[str, str]) -> Conversation:
    return Conversation("test line 1", "", "", tuple(Message(*message) for message in messages), ())


@pytest.mark.parametrize(
    ("task", "text", "question"),
    [
        ("chat", "What is one and two?", None),
        ("chat", None, [3, 1, 200]),
        ("chat", "Listen:", [5, 5]),
        ("tts", "Say this.", None),
        ("asr", None, [7, 8, 9, 10]),
        ("text", "Hello", None),
    ],
)
def test_prompts_are_those_of_inference(
    tokenizer: TextTokenizer, task: str, text: str | None, question: list[int] | None
) -> None:
    user = {
        "chat": "\n".join(part for part in (text, AUDIO if question else None) if part),
        "tts": f"{TTS_INSTRUCTION}\n{text}",
        "asr": f"{ASR_INSTRUCTION}\n{AUDIO}",
        "text": text or "",
    }[task]
    spoken = task in ("chat", "tts")
    codes = [*([question] if question else []), *([[11, 12, 13]] if spoken else [])]
    answer = "The answer is ten." + (AUDIO if spoken else "")
    sample = SampleBuilder(tokenizer, BOOST).build(talk(("user", user), ("assistant", answer)), codes)
    prompt = PromptBuilder(tokenizer).build(task, text, question)
    assert sample.ids[: len(prompt)].tolist() == prompt
    assert sample.trained.tolist() == [False] * len(prompt) + [True] * (len(sample.ids) - len(prompt))


def test_answer_is_interleaved_and_ends_trained(tokenizer: TextTokenizer) -> None:
    vocabulary = tokenizer.vocabulary
    words, codes = tokenizer.encode("The answer is four hundred and ten, I am sure."), list(range(40))
    conversation = talk(("user", "Hm?"), ("assistant", f"The answer is four hundred and ten, I am sure.{AUDIO}"))
    sample = SampleBuilder(tokenizer, BOOST).build(conversation, [codes])
    audio = [vocabulary.begin_of_audio, *vocabulary.audio_ids(codes), vocabulary.end_of_audio]
    expected = interleave([*words, *audio], BOOST, vocabulary.begin_of_audio, vocabulary.end_of_audio)
    closing = [vocabulary.im_end, *tokenizer.encode("\n")]
    assert sample.ids[sample.trained].tolist() == [*expected, *closing]
    assert expected[0] == words[0]
    assert expected[1] == vocabulary.begin_of_audio


def test_tts_answer_of_audio_alone_gets_its_text(tokenizer: TextTokenizer) -> None:
    build = SampleBuilder(tokenizer, BOOST).build
    question = ("user", f"{TTS_INSTRUCTION}\nOne two.")
    short = build(talk(question, ("assistant", AUDIO)), [[1, 2, 3]])
    full = build(talk(question, ("assistant", f"One two.{AUDIO}")), [[1, 2, 3]])
    assert short.ids.tolist() == full.ids.tolist()


def test_every_answer_of_a_long_talk_is_trained(tokenizer: TextTokenizer) -> None:
    conversation = talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    sample = SampleBuilder(tokenizer, BOOST).build(conversation, [])
    end = [tokenizer.vocabulary.im_end, *tokenizer.encode("\n")]
    assert sample.ids[sample.trained].tolist() == [*tokenizer.encode("b"), *end, *tokenizer.encode("d"), *end]


def spoil(lines: list[dict[str, Any]], folder: Path) -> None:
    """One fault in each line from the second on."""
    write_sound(folder / "audio" / "long.wav", 4.0, 100)
    write_sound(folder / "audio" / "empty.wav", 0.0, 100)
    (folder / "audio" / "noise.wav").write_bytes(b"not a sound")
    lines[1]["audios"] = ["audio/nowhere.wav"]
    lines[2]["audios"] = []
    lines[3]["mesages"] = lines[3].pop("messages")
    lines[4]["audios"][0] = "audio/empty.wav"
    lines[5]["audios"] = ["audio/long.wav"]
    lines[6]["audios"] = ["audio/noise.wav"]
    lines[7]["messages"][1]["content"] = "  "
    lines[8]["messages"][1]["content"] += AUDIO
    lines[8]["messages"][2]["content"] = lines[8]["messages"][2]["content"].replace(AUDIO, AUDIO * 2)
    lines[9]["messages"].reverse()
    lines[10]["messages"][0]["role"] = "human"
    lines[11]["messages"][0]["content"] = "\ud800"


def test_every_fault_of_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    lines = conversation_lines(tmp_path)
    spoil(lines, tmp_path)
    path = write_lines(tmp_path / "chat.jsonl", lines)
    with path.open("a") as file:
        file.write('{"messages": \n[1, 2]\n')
    with pytest.raises(TrainingError) as caught:
        read_conversations(path, max_audio_s=3.0)
    text = str(caught.value)
    for line, words in {
        2: "nowhere.wav is missing",
        3: "1 <|audio|> in the messages but 0 audios",
        4: "unknown keys mesages",
        5: "empty.wav is empty",
        6: "long.wav lasts 4.0 s, more than 3 s",
        7: "noise.wav cannot be read",
        8: "message 1 (assistant) is empty",
        9: "more than one <|audio|>",
        10: "roles must be user, assistant",
        11: "must have a role of system, user, assistant",
        12: "lone surrogate",
        13: "not JSON",
        14: "a JSON object is expected",
    }.items():
        assert any(f"line {line}:" in row and words in row for row in text.splitlines()), (line, words, text)
    assert "line 1:" not in text


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no such file"):
        read_conversations(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(TrainingError, match="holds no conversations"):
        read_conversations(tmp_path / "empty.jsonl")


def test_codes_are_the_served_ones_and_are_kept(checkpoint: Path, tmp_path: Path) -> None:
    conversations = read_conversations(write_conversations(tmp_path / "data"))
    audios = [audio for conversation in conversations for audio in conversation.audios]
    write_sound(tmp_path / "data" / "long.wav", 31.0, 150)
    audios.append(tmp_path / "data" / "long.wav")
    codes = SpeechCodes(checkpoint / "speech_tokenizer", tmp_path / "codes", torch.device("cpu"))
    codes.make(audios)
    engine = TorchSpeechTokenizer(*load_speech_tokenizer(checkpoint / "speech_tokenizer"))
    for audio in (*audios[:3], audios[-1]):
        samples = soundfile.read(audio, dtype="float32")[0]
        served = speech_tokens(engine, samples).tolist()
        assert len(codes[audio]) == len(served)
        assert np.mean(np.array(codes[audio]) == served) > 0.98  # ties of a random codebook may fall either way

    written = next((tmp_path / "codes").glob("*.jsonl"))
    with written.open("a") as file:
        file.write('{"audio": "cut')
    again = SpeechCodes(checkpoint / "speech_tokenizer", tmp_path / "codes", torch.device("cpu"))
    stamp = written.stat().st_mtime_ns
    again.make(audios)
    assert written.stat().st_mtime_ns == stamp  # nothing was tokenised again
    assert all(again[audio] == codes[audio] for audio in audios)


def token_set(lengths: list[int], tasks: list[str]) -> TokenSet:
    return TokenSet.of([Sample(np.full(n, i, np.int32), np.ones(n, np.bool_)) for i, n in enumerate(lengths)], tasks)


def test_token_set_survives_the_disk(tmp_path: Path) -> None:
    tokens = token_set([3, 5], ["tts", "chat"])
    tokens.save(tmp_path / "t.npz")
    again = TokenSet.load(tmp_path / "t.npz")
    assert again[1].ids.tolist() == [1] * 5
    assert again.tasks.tolist() == ["tts", "chat"]
    (tmp_path / "t.npz").write_bytes(b"garbage")
    with pytest.raises(TrainingError, match="not a readable token file"):
        TokenSet.load(tmp_path / "t.npz")


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(30, 64), st.integers(0, 5))
def test_an_epoch_holds_every_sample_once_within_the_length(lengths: list[int], length: int, seed: int) -> None:
    stream = PackStream(token_set(lengths, ["tts"] * len(lengths)), length, seed)
    for _ in range(2):
        seen: list[int] = []
        while len(seen) < len(lengths):
            pack = next(stream)
            assert sum(len(sample.ids) for sample in pack) <= length
            seen += [int(sample.ids[0]) for sample in pack]
        assert sorted(seen) == list(range(len(lengths)))


def test_mixture_weighs_tasks_and_the_stream_resumes() -> None:
    tokens = token_set([10] * 300, ["tts"] * 100 + ["asr"] * 100 + ["chat"] * 100)
    stream = PackStream(tokens, 50, 1, {"tts": 0.0, "asr": 0.25, "chat": 2.0})
    drawn: list[int] = []
    while len(drawn) < 225 * 4:
        drawn += [int(sample.ids[0]) for sample in next(stream)]
    counts = np.bincount(np.array(drawn) // 100, minlength=3) / len(drawn)
    assert counts[0] == 0
    assert counts[1] == pytest.approx(25 / 225, abs=0.03)
    state = stream.state_dict()
    following = [next(stream) for _ in range(60)]
    resumed = PackStream(tokens, 50, 1, {"tts": 0.0, "asr": 0.25, "chat": 2.0})
    resumed.load_state_dict(state)
    for pack in following:
        assert [s.ids[0] for s in next(resumed)] == [s.ids[0] for s in pack]


def test_a_curriculum_goes_through_its_phases_and_resumes() -> None:
    tokens = token_set([10] * 90, ["copy"] * 30 + ["asr"] * 30 + ["chat"] * 30)
    phases = [(4, {"asr": 0.0, "chat": 0.0}), (3, {"copy": 0.0, "chat": 0.0}), (None, {"copy": 0.0, "asr": 0.0})]

    def tasks_of(pack: list[Sample]) -> set[int]:
        return {int(sample.ids[0]) // 30 for sample in pack}

    whole = Curriculum(tokens, 50, 1, phases)
    drawn = [next(whole) for _ in range(30)]
    assert [tasks_of(pack) for pack in drawn] == [{0}] * 4 + [{1}] * 3 + [{2}] * 23
    for stop in (2, 4, 6, 20):
        halved = Curriculum(tokens, 50, 1, phases)
        for _ in range(stop):
            next(halved)
        resumed = Curriculum(tokens, 50, 1, phases)
        resumed.load_state_dict(halved.state_dict())
        for pack in drawn[stop:]:
            assert [s.ids[0] for s in next(resumed)] == [s.ids[0] for s in pack]


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_together_draw_what_one_alone_would(world: int) -> None:
    tokens = token_set([10] * 41, ["tts"] * 41)  # 21 packs an epoch
    alone = PackStream(tokens, 20, 1)
    together = [PackStream(tokens, 20, 1, rank=rank, world=world) for rank in range(world)]

    def first_ids(stream: PackStream) -> list[int]:
        return [int(sample.ids[0]) for sample in next(stream)]

    for _ in range(50):
        for stream in together:
            assert first_ids(stream) == first_ids(alone)
    state = together[0].state_dict()
    for rank in range(4):  # another number of processes goes on
        resumed = PackStream(tokens, 20, 1, rank=rank, world=4)
        resumed.load_state_dict(state)
        assert first_ids(resumed) == first_ids(alone)


@pytest.mark.parametrize(
    ("mixture", "length", "words"),
    [
        ({"chat": 1.0}, 50, "no samples of chat"),
        ({"tts": 0.0}, 50, "at least one above 0"),
        ({}, 9, "more than a pack of 9"),
    ],
)
def test_streams_that_cannot_be(mixture: dict[str, float], length: int, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        PackStream(token_set([10, 10], ["tts", "tts"]), length, 1, mixture)


def test_lines_of_a_split(tmp_path: Path) -> None:
    path = write_conversations(tmp_path)
    assert len(read_conversations(path, "test")) == 2
    assert len(read_conversations(path, "train")) == 10
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["split"]
    assert len(read_conversations(write_lines(tmp_path / "plain.jsonl", lines), "train")) == 12
