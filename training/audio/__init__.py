"""Training of speech tokenizer, flow and vocoder."""
