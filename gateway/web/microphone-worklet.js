// Takes the microphone's samples and gives them out as int16 at 24 kHz, 40 ms at a time.

const RATE_HZ = 24000;
const PIECE = 960;

class MicrophoneProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(PIECE);
    this.filled = 0;
    // Where the context does not run at 24 kHz, each sample out is the mean of the span of those in that it covers.
    this.step = sampleRate / RATE_HZ;
    this.left = this.step;
    this.sum = 0;
  }

  process([[channel]]) {
    for (const sample of channel ?? []) this.take(sample);
    return true;
  }

  take(sample) {
    let rest = 1;
    while (rest >= this.left) {
      this.put((this.sum + sample * this.left) / this.step);
      rest -= this.left;
      this.left = this.step;
      this.sum = 0;
    }
    this.left -= rest;
    this.sum += sample * rest;
  }

  put(sample) {
    this.piece[this.filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
    if (this.filled < PIECE) return;
    this.port.postMessage(this.piece, [this.piece.buffer]);
    this.piece = new Int16Array(PIECE);
    this.filled = 0;
  }
}

registerProcessor("microphone", MicrophoneProcessor);
