// Draws the spectrum of what is being said: the user's above the line, the answer's below it.

const BARS = 48;
// Up to here in the spectrum of 12 kHz there is speech.
const SHARE = 0.6;

export class Scope {
  #canvas;
  #analysers;
  #levels = new Uint8Array(256);
  #still = matchMedia("(prefers-reduced-motion: reduce)");

  /** `analysers`: a function that gives those of the user and of the answer; null for none. */
  constructor(canvas, analysers) {
    this.#canvas = canvas;
    this.#analysers = analysers;
    this.#draw();
  }

  #draw = () => {
    // A page that is not seen is not drawn: the browser asks for no frame of it.
    requestAnimationFrame(this.#draw);
    const { clientWidth, clientHeight } = this.#canvas;
    const scale = devicePixelRatio || 1;
    const [width, height] = [Math.round(clientWidth * scale), Math.round(clientHeight * scale)];
    if (this.#canvas.width !== width || this.#canvas.height !== height) Object.assign(this.#canvas, { width, height });
    const context = this.#canvas.getContext("2d");
    const colours = getComputedStyle(this.#canvas);
    context.clearRect(0, 0, width, height);
    context.fillStyle = colours.getPropertyValue("--line");
    context.fillRect(0, height / 2, width, Math.max(1, scale / 2));
    const [user, answer] = this.#analysers();
    this.#bars(context, user, colours.getPropertyValue("--user"), -1);
    this.#bars(context, answer, colours.getPropertyValue("--answer"), 1);
  };

  #bars(context, analyser, colour, direction) {
    if (!analyser) return;
    const { width, height } = this.#canvas;
    analyser.getByteFrequencyData(this.#levels);
    const bars = this.#still.matches ? 1 : BARS;
    const [step, bins] = [width / bars, (this.#levels.length * SHARE) / bars];
    context.fillStyle = colour;
    for (let bar = 0; bar < bars; bar++) {
      const span = this.#levels.subarray(Math.floor(bar * bins), Math.ceil((bar + 1) * bins));
      const level = span.reduce((sum, value) => sum + value, 0) / span.length / 255;
      const length = level * (height / 2 - 2);
      context.fillRect(bar * step + 1, height / 2, Math.max(1, step - 2), direction * length);
    }
  }
}
