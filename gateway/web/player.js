// The sound of the answers: played as it comes, stopped at once, and how much of each was heard.

import { RATE_HZ } from "./realtime.js";

export class Player extends EventTarget {
  #context = null;
  #worklet = null;
  #id = null;
  #stopping = null;
  analyser = null;

  /** The id of the answer that is being played, or null. */
  get playing() {
    return this.#id;
  }

  /** Makes sound possible; browsers allow it after a click or a key only. */
  async unlock() {
    if (!this.#context) {
      this.#context = new AudioContext({ sampleRate: RATE_HZ, latencyHint: "interactive" });
      this.#context.ready = this.#build();
    }
    await Promise.all([this.#context.ready, this.#context.resume()]);
  }

  async #build() {
    await this.#context.audioWorklet.addModule(new URL("player-worklet.js", import.meta.url));
    this.#worklet = new AudioWorkletNode(this.#context, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    this.#worklet.port.onmessage = ({ data }) => this.#hear(data);
    this.analyser = new AnalyserNode(this.#context, { fftSize: 512, smoothingTimeConstant: 0.6 });
    this.#worklet.connect(this.analyser).connect(this.#context.destination);
  }

  /** The next samples, floats in [-1, 1] at 24 kHz, of the answer `id`. */
  push(id, samples) {
    this.#id = id;
    this.#worklet?.port.postMessage({ action: "push", id, samples }, [samples.buffer]);
  }

  end(id) {
    this.#worklet?.port.postMessage({ action: "end", id });
  }

  /** Falls silent. Resolves to {id, heardMs} of what was being played, or to null. */
  stop() {
    if (this.#id === null || !this.#worklet) return Promise.resolve(null);
    this.#id = null;
    this.#worklet.port.postMessage({ action: "stop" });
    return new Promise((resolve) => (this.#stopping = resolve));
  }

  #hear({ type, id, played }) {
    if (type === "stopped") {
      // What the device still holds was not heard.
      const held = (this.#context.outputLatency || 0) + this.#context.baseLatency;
      this.#stopping?.(id === null ? null : { id, heardMs: Math.max(0, played / RATE_HZ - held) * 1000 });
      this.#stopping = null;
      return;
    }
    if (type === "ended" && id === this.#id) this.#id = null;
    this.dispatchEvent(new CustomEvent(type, { detail: { id, heardMs: (played / RATE_HZ) * 1000 } }));
  }
}
