// Plays samples in the order they come and counts those that were really played, of each answer by itself.

// Seconds that are waited for: before an answer begins, and after it ran dry.
const FIRST_S = 0.04;
const AGAIN_S = 0.25;

class PlayerProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    this.reset(null);
    this.port.onmessage = ({ data }) => this[data.action](data);
  }

  reset(id) {
    this.id = id;
    this.pieces = []; // Float32Array each
    this.at = 0; // in the first of them
    this.waiting = 0; // samples in all of them
    this.played = 0;
    this.complete = false;
    this.needed = FIRST_S * sampleRate;
    this.playing = false;
  }

  /** More samples of the answer `id`. */
  push({ id, samples }) {
    if (id !== this.id) this.reset(id);
    this.pieces.push(samples);
    this.waiting += samples.length;
  }

  /** No more samples come. */
  end({ id }) {
    if (id !== this.id) return;
    this.complete = true;
    if (!this.waiting) this.finish();
  }

  /** Silence, now. */
  stop() {
    const { id, played } = this;
    this.reset(null);
    this.port.postMessage({ type: "stopped", id, played });
  }

  process(inputs, [[channel]]) {
    if (!this.playing && this.waiting && (this.complete || this.waiting >= this.needed)) {
      this.playing = true;
      if (!this.played) this.port.postMessage({ type: "began", id: this.id });
    }
    if (this.playing) this.fill(channel);
    return true;
  }

  fill(channel) {
    let filled = 0;
    while (filled < channel.length && this.pieces.length) {
      const piece = this.pieces[0].subarray(this.at, this.at + channel.length - filled);
      channel.set(piece, filled);
      filled += piece.length;
      this.at += piece.length;
      if (this.at === this.pieces[0].length) {
        this.pieces.shift();
        this.at = 0;
      }
    }
    this.played += filled;
    this.waiting -= filled;
    if (this.waiting) return;
    this.playing = false;
    this.needed = AGAIN_S * sampleRate;
    if (this.complete) this.finish();
  }

  finish() {
    this.port.postMessage({ type: "ended", id: this.id, played: this.played });
    this.reset(null);
  }
}

registerProcessor("player", PlayerProcessor);
