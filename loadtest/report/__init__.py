"""The report of a run: figures (`summary`), a page with pictures, and the files."""
