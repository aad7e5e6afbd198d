"""Settings survive the trip through the environment of the model processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from serving import settings as serving_settings
from serving.settings import ServingSettings, default_queue, default_slots, default_threads, served_engines
from vita_audio.contract.errors import EngineError


def test_round_trip() -> None:
    settings = ServingSettings(
        Path("/engines"),
        slots=3,
        queue=0,
        threads=2,
        device="cpu",
        admission=Path("/tmp/admission"),
        prefix_cache="off",
        secret="5ec12e7",
        kernels_off="gate,pdl",
        gpu_priority="audio_decoder",
        decoder_precision="fp16",
        speech_precision="bf16",
    )
    assert "5ec12e7" not in repr(settings)
    assert ServingSettings.from_environment(settings.to_environment()) == settings
    assert settings.to_environment()["OMP_NUM_THREADS"] == "2"


def test_defaults_but_for_the_engines() -> None:
    settings = ServingSettings.from_environment({"VITA_ENGINES": "/engines"})
    assert settings == ServingSettings(Path("/engines"), default_slots(), default_queue(), default_threads())
    assert ServingSettings.from_environment({"VITA_ENGINES": "/engines", "VITA_ADMISSION": ""}).admission is None
    with pytest.raises(EngineError, match=r"VITA_ENGINES is not set.*python -m server"):
        ServingSettings.from_environment({})


def test_engines_are_opened_with_what_the_server_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = ServingSettings(Path("/engines"), slots=3, queue=5, threads=7, device="cpu", kernels_off="gate, pdl")
    given = replace(given, decoder_precision="bf16", speech_precision="tf32")
    for name, value in given.to_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(serving_settings, "load_manifest", lambda folder: f"manifest of {folder}")
    monkeypatch.setattr(serving_settings, "EngineSource", lambda *arguments: arguments)
    settings, manifest, source = served_engines()
    assert settings == given
    assert manifest == "manifest of /engines"
    assert source == (Path("/engines"), manifest, 7, "cpu", {"gate", "pdl"}, "bf16", "tf32")
    monkeypatch.setenv("VITA_SPEECH_PRECISION", "int8")
    with pytest.raises(EngineError, match="VITA_SPEECH_PRECISION: 'int8' is not valid"):
        served_engines()
