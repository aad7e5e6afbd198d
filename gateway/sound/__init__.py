"""Sound files of the formats that callers send and ask for; knows samples only."""
