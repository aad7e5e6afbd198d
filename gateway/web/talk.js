// A conversation: the session's events become entries of the log and sound, and what a person does becomes events.

import { toSamples } from "./realtime.js";
import { wordsFor } from "./problems.js";

// Errors that mean only that what was to be stopped had ended by itself.
const HARMLESS = ["response_cancel_not_active", "item_not_found"];

export class Talk {
  #realtime;
  #player;
  #log;
  #show;
  #askedAt = 0;
  #asked = []; // of each response that was asked for and has not begun: whether it is still wanted
  #response = null; // id of the response that is being made
  #answer = null; // id of the answer that is coming
  #stopped = new Set(); // ids of answers that were interrupted: late sound of theirs is dropped
  #remarks = new Map(); // answer -> parts of its small line

  /** `show`: {state(text), problem(text)}. */
  constructor(realtime, player, log, show) {
    this.#realtime = realtime;
    this.#player = player;
    this.#log = log;
    this.#show = show;
    for (const [type, handle] of Object.entries(this.#handlers)) {
      realtime.addEventListener(type, ({ detail }) => handle(detail));
    }
    player.addEventListener("began", ({ detail }) => this.#began(detail.id));
    player.addEventListener("ended", ({ detail }) => this.#ended(detail));
  }

  /** Whether an answer was asked for, is coming or is being played. */
  get busy() {
    return this.#asked.includes(true) || [this.#response, this.#answer, this.#player.playing].some((id) => id !== null);
  }

  /** A typed turn; it interrupts an answer that is still being given. */
  async say(text) {
    await this.interrupt();
    this.#realtime.say(text);
    this.#think();
  }

  /** Stops the answer: silence at once, and the model remembers only what was heard. */
  async interrupt() {
    if (this.#asked.length || this.#response !== null) this.#realtime.cancel();
    await this.#silence();
    this.#show.state("Ready");
  }

  forget() {
    this.#remarks.clear();
    this.#log.clear();
  }

  /** The connection is gone; so is what was coming. */
  lost() {
    this.#asked = [];
    this.#response = this.#answer = null;
    this.#player.stop();
  }

  /** A response is going to be made. */
  #think() {
    this.#askedAt = performance.now();
    this.#asked.push(true);
    this.#show.state("Thinking…");
  }

  async #silence() {
    for (const id of [this.#answer, this.#player.playing]) if (id !== null) this.#stopped.add(id);
    this.#asked.fill(false);
    this.#response = this.#answer = null;
    const heard = await this.#player.stop();
    if (!heard) return;
    this.#realtime.truncate(heard.id, heard.heardMs);
    this.#remark(heard.id, `interrupted after ${seconds(heard.heardMs)}`);
  }

  #began(id) {
    this.#show.state("Speaking");
    this.#remark(id, `first sound after ${Math.round(performance.now() - this.#askedAt)} ms`);
  }

  #ended({ id, heardMs }) {
    this.#remark(id, seconds(heardMs));
    this.#show.state("Ready");
  }

  #remark(id, words) {
    const parts = this.#remarks.get(id) ?? [];
    this.#remarks.set(id, [...parts, words]);
    this.#log.remark(id, [...parts, words].join(" · "));
  }

  #write = ({ item_id, delta }) => this.#log.append(item_id, "assistant", delta);

  #handlers = {
    "input_audio_buffer.speech_started": ({ item_id }) => {
      this.#silence(); // the server ends the answer by itself
      this.#log.replace(item_id, "user", "…");
      this.#show.state("Listening…");
    },
    "input_audio_buffer.speech_stopped": () => this.#think(),
    "conversation.item.added": ({ item }) => {
      const text = item.content[0]?.text;
      if (item.role === "user" && text) this.#log.replace(item.id, "user", text);
    },
    "conversation.item.input_audio_transcription.completed": ({ item_id, transcript }) =>
      this.#log.replace(item_id, "user", transcript || "(not understood)"),
    "conversation.item.input_audio_transcription.failed": ({ item_id }) =>
      this.#log.replace(item_id, "user", "(not written down)"),
    "response.created": ({ response }) => {
      if (this.#asked.shift() ?? true) this.#response = response.id;
    },
    "response.output_item.added": ({ item }) => {
      this.#answer = item.id;
      this.#log.entry(item.id, "assistant");
    },
    "response.output_audio_transcript.delta": this.#write,
    "response.output_text.delta": this.#write,
    "response.output_audio.delta": ({ item_id, delta }) => {
      if (!this.#stopped.has(item_id)) this.#player.push(item_id, toSamples(delta));
    },
    "response.output_audio.done": ({ item_id }) => this.#player.end(item_id),
    "response.done": ({ response }) => this.#done(response),
    error: ({ error }) => {
      if (HARMLESS.includes(error.code)) return;
      this.#asked.pop(); // it may be what was refused
      this.#show.problem(wordsFor(error));
    },
  };

  #done({ id, status, status_details, output }) {
    if (id === this.#response) this.#response = null;
    if (output[0]?.id === this.#answer) this.#answer = null;
    if (status === "failed") this.#show.problem(wordsFor(status_details?.error));
    if (status === "incomplete") this.#remark(output[0]?.id, "not complete: the answer was too long");
    if (status !== "cancelled" && this.#player.playing === null) this.#show.state("Ready");
  }
}

function seconds(milliseconds) {
  return `${(milliseconds / 1000).toFixed(1)} s`;
}
