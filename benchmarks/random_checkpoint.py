"""A language model of any size with random weights, under the name that the benchmarks use."""

from build_engines.seed_language_model import RandomLanguageModel as RandomCheckpoint

__all__ = ["RandomCheckpoint"]
