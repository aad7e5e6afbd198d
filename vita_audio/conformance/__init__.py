"""Runs golden cases through the reference and every engine available here: `python -m vita_audio.conformance DIR`."""
