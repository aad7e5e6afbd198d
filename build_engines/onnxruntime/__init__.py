"""Exports the audio networks of a checkpoint: `export_speech_tokenizer`, `export_flow`, `export_vocoder`."""

from build_engines.onnxruntime.flow import export_flow
from build_engines.onnxruntime.speech_tokenizer import export_speech_tokenizer
from build_engines.onnxruntime.vocoder import export_vocoder

__all__ = ["export_flow", "export_speech_tokenizer", "export_vocoder"]
