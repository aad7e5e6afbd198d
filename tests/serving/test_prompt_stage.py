"""The stage `prompt` without Triton: what it refuses and when, what it measures, what its Start holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving import prompt_stage
from serving.admission import Admission, AdmissionRecord
from serving.heartbeat import Heartbeats
from serving.prompt_stage import MAX_REQUEST_ID, PromptStage
from vita_audio.checkpoint.random_weights.tokenizer import write_tokenizer
from vita_audio.contract.errors import InvalidRequest, ServerFull, ServerStopping
from vita_audio.engines.interface import Floats
from vita_audio.engines.manifest import load_manifest
from vita_audio.sensevoice_features import slot_count
from vita_audio.text.tokenizer import TextTokenizer

SPEECH = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)


class Tokenizer:
    """Stands for the model `speech_tokenizer`."""

    def __init__(self) -> None:
        self.clips: list[Floats] = []
        self.stage: PromptStage | None = None
        self.codes = [5, 6, 7]

    def __call__(self, clip: Floats) -> Sequence[int]:
        self.clips.append(clip)
        if self.stage is not None:
            self.stage.measure()
        return self.codes


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer()


@pytest.fixture
def record() -> AdmissionRecord:
    return AdmissionRecord(None)


@pytest.fixture
def stage(engines: Path, tokenizer: Tokenizer, record: AdmissionRecord) -> PromptStage:
    limits = load_manifest(engines).limits
    return PromptStage(TextTokenizer(engines / "tokenizer.json"), limits, tokenizer, record, "prompt_0")


def test_settings_and_prompt_are_those_of_the_request(stage: PromptStage) -> None:
    start = stage.prepare({"TEXT": "Hello.", "TASK": "tts", "MODE": "boost", "MAX_TOKENS": 7, "TOP_P": 0.5, "SEED": 9})
    settings = start.settings
    assert (settings.task, settings.mode, settings.pattern) == ("tts", "boost", (1, 10, 4, 10))
    assert (settings.max_tokens, settings.top_p, settings.seed) == (7, 0.5, 9)
    assert list(settings.timings_ms) == ["prompt"]
    assert start.tokens != stage.prepare({"TEXT": "Hello.", "TASK": "chat"}).tokens


def test_speech_is_tokenized_at_16_khz_and_its_time_is_apart(
    stage: PromptStage, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([1.0, 2.0, 5.0, 5.5])  # taken in, speech begins, speech is tokenized, prompt is written
    monkeypatch.setattr(prompt_stage.time, "perf_counter", lambda: next(clock))
    start = stage.prepare({"AUDIO": SPEECH, "SAMPLE_RATE": 8000})
    assert tokenizer.clips[0].shape == (16_000,)
    assert start.settings.timings_ms == {"speech_tokenizer": 3000.0, "prompt": 1500.0}


def test_the_gauge_counts_the_request_that_is_running(stage: PromptStage, tokenizer: Tokenizer) -> None:
    series = ("vita_streams", ("prompt", "running", "prompt_0"))
    tokenizer.stage = stage
    stage.prepare({"AUDIO": SPEECH})
    assert stage.recorder.take().gauges[series] == 1
    with pytest.raises(InvalidRequest):
        stage.prepare({"TEXT": ""})
    stage.measure()
    assert stage.recorder.take().gauges[series] == 0


def test_a_draining_server_refuses_before_it_checks(stage: PromptStage, record: AdmissionRecord) -> None:
    record.drain()
    with pytest.raises(ServerStopping):
        stage.prepare({"TEXT": ""})


def test_a_full_server_tokenizes_no_speech_but_still_finds_the_fault(
    stage: PromptStage, tokenizer: Tokenizer, record: AdmissionRecord
) -> None:
    admission = Admission(record, slots=1, queue=0)
    stream = admission.admit()
    with pytest.raises(ServerFull):
        stage.prepare({"AUDIO": SPEECH})
    assert tokenizer.clips == []
    with pytest.raises(InvalidRequest, match="SAMPLE_RATE"):
        stage.prepare({"AUDIO": SPEECH, "SAMPLE_RATE": 1})
    assert stage.prepare({"TEXT": "Hello."}).tokens  # text is refused by speech_lm, which decides
    admission.release(stream)
    assert stage.prepare({"AUDIO": SPEECH}).tokens


def test_a_prompt_that_leaves_no_room_names_its_input(stage: PromptStage, monkeypatch: pytest.MonkeyPatch) -> None:
    for field, inputs in (("TEXT", {"TEXT": "a"}), ("AUDIO", {"AUDIO": SPEECH})):
        monkeypatch.setattr(stage._builder, "build", lambda *_: [0] * stage._limits.context_tokens)
        with pytest.raises(InvalidRequest, match="tokens fit into the context") as caught:
            stage.prepare(inputs)
        assert caught.value.field == field


@pytest.mark.parametrize("request_id", ["x" * (MAX_REQUEST_ID + 1), "a\nb", "\x1b[31m", "\u2028"])
def test_a_request_id_that_could_harm_a_log_is_refused(stage: PromptStage, request_id: str) -> None:
    with pytest.raises(InvalidRequest, match=r"request id: .* at most 128 characters") as caught:
        stage.prepare({"TEXT": "Hello."}, request_id)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250
    assert stage.prepare({"TEXT": "Hello."}, "é" * MAX_REQUEST_ID)


def test_a_stage_follows_the_admission_of_its_server(
    engines: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "admission"
    monkeypatch.setenv("VITA_ENGINES", str(engines))
    monkeypatch.setenv("VITA_ADMISSION", str(path))
    stage = PromptStage.serve("prompt_1", tokenizer, Heartbeats())
    assert stage.prepare({"TEXT": "Hello.", "AUDIO": SPEECH}).tokens
    assert len(tokenizer.clips[-1]) == len(SPEECH)
    stage.measure()
    assert ("vita_streams", ("prompt", "running", "prompt_1")) in stage.recorder.take().gauges
    AdmissionRecord(path).drain()
    with pytest.raises(ServerStopping):
        stage.prepare({"TEXT": "Hello."})


def turn_of(stage: PromptStage, answer: Sequence[int], **inputs: object) -> list[int]:
    """The history after a turn: its prompt, and an answer."""
    return [*stage.prepare(inputs).tokens, *answer]


def test_the_next_prompt_goes_on_where_the_last_answer_ended(stage: PromptStage) -> None:
    history = turn_of(stage, [5, 6], TEXT="Hello.", SYSTEM="You are Ada.")
    start = stage.prepare({"TEXT": "And then?", "HISTORY": history})
    assert start.tokens[: len(history)] == history
    assert len(start.tokens) > len(history)
    assert not start.settings.read_only
    cut = stage.prepare({"TEXT": "And then?", "HISTORY": history, "HEARD": 0})
    assert cut.tokens[: len(history) - 2] == history[:-2]
    assert len(cut.tokens) == len(start.tokens)  # of an answer without audio nothing is cut


def test_who_answers_is_said_once(stage: PromptStage) -> None:
    plain, system = stage.prepare({"TEXT": "Hello."}), stage.prepare({"TEXT": "Hello.", "SYSTEM": "You are Ada."})
    text = stage.prepare({"TEXT": "Hello.", "TASK": "text", "SYSTEM": "You are Ada."})
    assert plain.tokens != system.tokens == text.tokens


def test_a_history_that_is_too_long_is_refused_or_loses_its_oldest_turns(stage: PromptStage) -> None:
    history = turn_of(stage, [5] * 20, TEXT="First of all.")
    first = len(history)
    while len(history) + 100 < stage._limits.context_tokens:
        history = turn_of(stage, [5] * 20, TEXT="And then?", HISTORY=history)
    history = turn_of(stage, [5] * 90, TEXT="And then?", HISTORY=history)
    with pytest.raises(InvalidRequest, match="tokens fit into the context") as caught:
        stage.prepare({"TEXT": "And then?", "HISTORY": history})
    assert caught.value.field == "HISTORY"
    kept = stage.prepare({"TEXT": "And then?", "HISTORY": history, "HISTORY_OVERFLOW": "drop", "MAX_TOKENS": 1})
    system = history.index(stage._reader._vocabulary.im_end) + 2
    assert kept.tokens[:system] == history[:system]
    assert kept.tokens[system : system + 20] != history[system : system + 20]
    assert first < len(kept.tokens) < stage._limits.context_tokens * 0.8
    following = turn_of(stage, [5], TEXT="And then?", HISTORY=[*kept.tokens, 5], HISTORY_OVERFLOW="drop", MAX_TOKENS=1)
    assert following[: len(kept.tokens)] == kept.tokens  # nothing more is dropped: the beginning stays in its slot


def test_what_is_there_of_a_turn_is_the_beginning_of_its_prompt(stage: PromptStage, tokenizer: Tokenizer) -> None:
    codes = list(range(30)) * 4
    tokenizer.codes = codes  # 120 tokens: two blocks of 4 s are final
    history = turn_of(stage, [5, 6], TEXT="Hello.")
    for past in ({}, {"HISTORY": history}):
        read = stage.prepare({"AUDIO": SPEECH, "READ_ONLY": 1, **past})
        whole = stage.prepare({"AUDIO": SPEECH, **past})
        assert read.settings.read_only == 1
        assert whole.tokens[: len(read.tokens)] == read.tokens
        end_of_audio = whole.tokens.index(stage._reader._vocabulary.end_of_audio)
        assert end_of_audio - len(read.tokens) == 20


@pytest.mark.parametrize("history", [[5, 6], [10**6], list(range(40))])
def test_ids_that_are_no_conversation_are_refused(stage: PromptStage, history: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="no turn begins at id 0") as caught:
        stage.prepare({"TEXT": "Hello.", "HISTORY": history})
    assert caught.value.field == "HISTORY"


def test_a_checkpoint_may_ask_for_plain_sentences(engines: Path, tokenizer: Tokenizer, stage: PromptStage) -> None:
    limits = replace(load_manifest(engines).limits, text_normalization="words")
    plain = PromptStage(TextTokenizer(engines / "tokenizer.json"), limits, tokenizer)
    for task in ("tts", "text", "chat"):
        wanted = stage.prepare({"TEXT": "What is two plus three?", "TASK": task}).tokens
        assert plain.prepare({"TEXT": "WHAT IS 2+3", "TASK": task}).tokens == wanted
        assert stage.prepare({"TEXT": "WHAT IS 2+3", "TASK": task}).tokens != wanted


def test_past_turns_may_be_sent_in_words(stage: PromptStage, engines: Path) -> None:
    said = [{"role": "user", "content": " I am Ada.\u200b"}, {"role": "assistant", "content": "Hello."}]
    hello = TextTokenizer(engines / "tokenizer.json").encode("Hello.")
    for task, system in (("text", None), ("chat", None), ("chat", "You are Ada.")):
        first = stage.prepare({"TEXT": "I am Ada.", "TASK": task, "SYSTEM": system})
        by_ids = stage.prepare({"TEXT": "And I?", "TASK": task, "HISTORY": [*first.tokens, *hello]})
        in_words = {"TEXT": "And I?", "TASK": task, "SYSTEM": system, "MESSAGES": json.dumps(said)}
        assert stage.prepare(in_words).tokens == by_ids.tokens


def test_past_turns_in_words_that_are_too_many_lose_the_oldest(stage: PromptStage) -> None:
    said = [{"role": role, "content": "a b c d " * 20} for _ in range(100) for role in ("user", "assistant")]
    inputs = {"TEXT": "And I?", "TASK": "text", "MESSAGES": json.dumps(said), "MAX_TOKENS": 1}
    with pytest.raises(InvalidRequest, match="tokens fit") as caught:
        stage.prepare(inputs)
    assert caught.value.field == "MESSAGES"
    assert stage.prepare({**inputs, "HISTORY_OVERFLOW": "drop"}).tokens


def test_silence_is_refused_and_pauses_are_not_tokenized(stage: PromptStage, tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"2\.00 s of silence.*microphone") as caught:
        stage.prepare({"AUDIO": np.zeros(32_000, np.float32)})
    assert (caught.value.field, tokenizer.clips) == ("AUDIO", [])
    pause = np.zeros(48_000, np.float32)
    stage.prepare({"AUDIO": np.concatenate([pause, SPEECH, pause])})
    assert len(tokenizer.clips[0]) / 16_000 == pytest.approx(len(SPEECH) / 16_000 + 0.6, abs=0.02)


def test_everyday_forms_of_a_text_are_the_text(stage: PromptStage) -> None:
    said = stage.prepare({"TEXT": "Hello there.", "TASK": "tts"}).tokens
    for form in (" Hello there.\r\n", "\ufeffHello\u00a0there.", "Hello\nthere."):
        assert stage.prepare({"TEXT": form, "TASK": "tts"}).tokens == said
    chat, broken = (stage.prepare({"TEXT": text}).tokens for text in ("Hello there.", "Hello\nthere."))
    assert chat != broken  # a line break means something where it is not read aloud


@pytest.mark.parametrize("text", ["...", "\u200b", "?!", "👩"])
@pytest.mark.parametrize("task", ["chat", "tts", "text"])
def test_a_text_without_a_word_is_refused(stage: PromptStage, text: str, task: str) -> None:
    with pytest.raises(InvalidRequest, match="no letter and no digit") as caught:
        stage.prepare({"TEXT": text, "TASK": task})
    assert caught.value.field == "TEXT"


class PlusEncoder:
    """Stands for the model `speech_tokenizer` of a Plus checkpoint: a row says how long its clip is."""

    def __init__(self) -> None:
        self.clips: list[int] = []

    def __call__(self, clip: Floats) -> Floats:
        self.clips.append(len(clip))
        return np.full((slot_count(len(clip)), 2), len(clip), np.float32)


@pytest.fixture
def encoder() -> PlusEncoder:
    return PlusEncoder()


@pytest.fixture
def plus(engines: Path, tmp_path: Path, encoder: PlusEncoder, record: AdmissionRecord) -> PromptStage:
    write_tokenizer(tmp_path, merges=300, audio_codes=32, seed=0, plus=True)
    limits = load_manifest(engines).limits
    return PromptStage(TextTokenizer(tmp_path / "tokenizer.json"), limits, encoder, record)


def test_embeddings_of_a_history_and_of_its_turn_come_in_the_order_of_their_places(
    plus: PromptStage, encoder: PlusEncoder
) -> None:
    first = plus.prepare({"AUDIO": SPEECH})
    places = [slot_count(len(SPEECH)), slot_count(4000)]
    assert first.embeddings.shape == (places[0], 2)
    past = {"HISTORY": first.tokens, "HISTORY_AUDIO": SPEECH, "HISTORY_AUDIO_SAMPLES": [len(SPEECH)]}
    start = plus.prepare({"AUDIO": SPEECH[:4000], **past})
    assert start.embeddings[:, 0].tolist() == [len(SPEECH)] * places[0] + [4000] * places[1]
    assert (first.settings.history_clips, start.settings.history_clips) == (1, 2)
    assert encoder.clips == [len(SPEECH), len(SPEECH), 4000]
    ahead = plus.prepare({"AUDIO": SPEECH[:4000], "READ_ONLY": 1, **past})
    assert len(ahead.embeddings) == places[0]  # only what comes before the clip
    assert ahead.tokens == start.tokens[: len(ahead.tokens)]


def test_a_full_server_encodes_no_speech_of_a_history(
    plus: PromptStage, encoder: PlusEncoder, record: AdmissionRecord
) -> None:
    history = plus.prepare({"AUDIO": SPEECH}).tokens
    Admission(record, slots=1, queue=0).admit()
    asked = {"TEXT": "Go on.", "HISTORY": history, "HISTORY_AUDIO": SPEECH, "HISTORY_AUDIO_SAMPLES": [len(SPEECH)]}
    with pytest.raises(ServerFull):
        plus.prepare(asked)
    assert len(encoder.clips) == 1


def refusal_of(stage: PromptStage, **inputs: object) -> str:
    with pytest.raises(InvalidRequest) as caught:
        stage.prepare(inputs)
    return str(caught.value)


def test_a_refusal_names_field_value_limit_and_remedy_in_this_order(stage: PromptStage, plus: PromptStage) -> None:
    no_words = "it has no letter and no digit; send words, or leave TEXT out"
    assert refusal_of(stage, TEXT="...") == f"TEXT: '...' is not valid: {no_words}"
    clips = {"HISTORY_AUDIO": SPEECH, "HISTORY_AUDIO_SAMPLES": [len(SPEECH)]}
    history = stage.prepare({"AUDIO": SPEECH}).tokens
    limit = "this checkpoint reads speech as tokens, and HISTORY has them; leave it out"
    told = refusal_of(stage, TEXT="Go on.", HISTORY=history, **clips)
    assert told == f"HISTORY_AUDIO: '1 clips' is not valid: {limit}"
    history = plus.prepare({"AUDIO": SPEECH}).tokens
    limit = "HISTORY has 1 turns with speech; send the last 1 clips, as they were sent"
    assert refusal_of(plus, TEXT="Go on.", HISTORY=history) == f"HISTORY_AUDIO: '0 clips' is not valid: {limit}"
    short = {**clips, "HISTORY_AUDIO": SPEECH[:4000], "HISTORY_AUDIO_SAMPLES": [4000]}
    told = refusal_of(plus, TEXT="Go on.", HISTORY=history, **short)
    assert told.startswith(f"HISTORY_AUDIO: 'clip 1 of {slot_count(4000)} places' is not valid: HISTORY has")
    told = refusal_of(plus, AUDIO=SPEECH[:330])
    limit = "this checkpoint (Plus) needs at least 0.025 s; send more speech"
    assert told == f"AUDIO: '330 samples at 16000 Hz (0.021 s)' is not valid: {limit}"
