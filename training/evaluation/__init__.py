"""Parts of `python -m training.evaluate`: cases, serving them, scores, report."""
