"""Golden cases through the reference and every engine available here: `python -m build_engines.conformance DIR`."""
