"""OpenAI's Realtime interface (GA) over a WebSocket: events, turn-taking, conversation, protocol."""
