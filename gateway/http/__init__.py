"""OpenAI's HTTP interface: a file for each path."""
