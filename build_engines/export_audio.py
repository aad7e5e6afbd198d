"""Exports the audio networks of a checkpoint: `export_speech_tokenizer`, `export_flow`, `export_vocoder`."""

from build_engines.export_flow import export_flow
from build_engines.export_speech_tokenizer import export_speech_tokenizer
from build_engines.export_vocoder import export_vocoder

__all__ = ["export_flow", "export_speech_tokenizer", "export_vocoder"]
