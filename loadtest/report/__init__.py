"""The report of a run: figures (`summary`), drawings (`chart`), a page, and the files."""
