"""Parts of `python -m evaluation`: cases, serving them, scores, report."""
