// The microphone: speech as it is spoken, and an analyser of it to draw.

import { RATE_HZ } from "./realtime.js";

export class Microphone {
  #context = null;
  #stream = null;
  #starting = null; // while the person is asked for permission
  analyser = null;

  get on() {
    return this.#stream !== null;
  }

  /** Begins to call `take` with Int16Array samples at 24 kHz. Throws what the browser says where there is none. */
  start(take) {
    this.#starting ??= this.#start(take).finally(() => (this.#starting = null));
    return this.#starting;
  }

  async #start(take) {
    if (!navigator.mediaDevices) throw new DOMException("not a secure page", "SecurityError");
    // Echo cancellation keeps the answer's own sound from interrupting it.
    const wanted = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    try {
      await this.#connect(stream, take);
    } catch (error) {
      stop(stream);
      throw error;
    }
    this.#stream = stream;
  }

  stop() {
    if (!this.on) return;
    stop(this.#stream);
    this.#context.close();
    this.#stream = this.#context = this.analyser = null;
  }

  async #connect(stream, take) {
    let source;
    try {
      this.#context = new AudioContext({ sampleRate: RATE_HZ });
      source = this.#context.createMediaStreamSource(stream);
    } catch {
      // Firefox takes a microphone at its own rate only: the worklet resamples then.
      this.#context = new AudioContext();
      source = this.#context.createMediaStreamSource(stream);
    }
    await this.#context.audioWorklet.addModule(new URL("microphone-worklet.js", import.meta.url));
    await this.#context.resume();
    const worklet = new AudioWorkletNode(this.#context, "microphone", { numberOfOutputs: 0 });
    worklet.port.onmessage = ({ data }) => take(data);
    this.analyser = new AnalyserNode(this.#context, { fftSize: 512, smoothingTimeConstant: 0.6 });
    source.connect(this.analyser).connect(worklet);
  }
}

function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
}
