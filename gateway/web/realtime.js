// A session of the Realtime interface (docs/gateway.md, "Realtime"): its WebSocket, its settings, and its events as DOM events.

export const RATE_HZ = 24000;
const CONNECT_MS = 10000;

export class Realtime extends EventTarget {
  #socket = null;

  /** Whether events can be sent. */
  get open() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  /**
   * Opens a session, which has one mode; resolves when its settings hold. Each event of the server is then dispatched under its own type,
   * with the event as `detail`; `lost` when the connection ends by itself. Rejects when there is none; with the cause `left` after `close`.
   */
  connect(key, mode) {
    this.close();
    const address = new URL("v1/realtime", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    address.searchParams.set("model", mode ? `vita-audio-${mode}` : "vita-audio");
    // A browser sets no headers of a WebSocket: the key travels as a subprotocol, as OpenAI's own pages send it.
    const protocols = key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"];
    const socket = (this.#socket = new WebSocket(address, protocols));
    return new Promise((resolve, reject) => {
      const giveUp = setTimeout(() => socket.close(), CONNECT_MS);
      socket.addEventListener("open", () => this.send({ type: "session.update", session: SESSION }));
      socket.addEventListener("message", (message) => {
        const event = JSON.parse(message.data);
        if (event.type === "session.updated") {
          clearTimeout(giveUp);
          resolve();
        }
        this.dispatchEvent(new CustomEvent(event.type, { detail: event }));
      });
      socket.addEventListener("close", (closed) => {
        clearTimeout(giveUp);
        const left = socket !== this.#socket;
        reject(new Error("no connection", { cause: { left } }));
        if (left) return;
        this.#socket = null;
        this.dispatchEvent(new CustomEvent("lost", { detail: closed }));
      });
    });
  }

  close() {
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  send(event) {
    if (this.open) this.#socket.send(JSON.stringify(event));
  }

  /** Speech, Int16Array at 24 kHz. */
  append(samples) {
    this.send({ type: "input_audio_buffer.append", audio: toBase64(new Uint8Array(samples.buffer)) });
  }

  /** What was appended and is no whole turn is forgotten. */
  clear() {
    this.send({ type: "input_audio_buffer.clear" });
  }

  say(text) {
    const item = { type: "message", role: "user", content: [{ type: "input_text", text }] };
    this.send({ type: "conversation.item.create", item });
    this.send({ type: "response.create" });
  }

  cancel() {
    this.send({ type: "response.cancel" });
  }

  /** Of an answer only the first milliseconds were heard. */
  truncate(itemId, milliseconds) {
    const audio_end_ms = Math.round(milliseconds);
    this.send({ type: "conversation.item.truncate", item_id: itemId, content_index: 0, audio_end_ms });
  }
}

const PCM = { type: "audio/pcm", rate: RATE_HZ };
const SESSION = {
  type: "realtime",
  output_modalities: ["audio"],
  audio: {
    input: {
      format: PCM,
      transcription: { model: "vita-audio" },
      turn_detection: { type: "server_vad", create_response: true, interrupt_response: true },
    },
    output: { format: PCM },
  },
};

function toBase64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}

/** Sound of an event: base64 of int16 samples, as floats in [-1, 1]. */
export function toSamples(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return Float32Array.from(new Int16Array(bytes.buffer, 0, bytes.length >> 1), (sample) => sample / 32768);
}
