"""The gateway: OpenAI's HTTP and Realtime interfaces, and a web page, over the client of `vita_audio`."""
