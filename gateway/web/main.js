// The page: what a person clicks, types and says, and what is shown of it.

import { Log } from "./log.js";
import { Microphone } from "./microphone.js";
import { Player } from "./player.js";
import { whyNot, wordsForMicrophone } from "./problems.js";
import { Realtime } from "./realtime.js";
import { Scope } from "./scope.js";
import { Talk } from "./talk.js";

const KEY = "vita-audio-key";
const element = (id) => document.getElementById(id);
const [microphone, player, realtime] = [new Microphone(), new Player(), new Realtime()];
const log = new Log(element("log"));
const hint = element("hint");
let connecting = null;

const show = {
  state(text) {
    element("state").textContent = text;
    element("stop").disabled = !talk.busy;
  },
  problem(text, { needsKey = false, retry = false } = {}) {
    element("problem").firstElementChild.textContent = text;
    element("key-form").hidden = !needsKey;
    element("retry").hidden = !retry;
    element("problem").hidden = false;
    if (needsKey) element("key").focus();
  },
  noProblem() {
    element("problem").hidden = true;
  },
};
const talk = new Talk(realtime, player, log, show);
new Scope(element("scope"), () => [microphone.analyser, player.playing === null ? null : player.analyser]);

/** A session is open, or the person is told why not; whether it is. */
async function connected() {
  if (realtime.open) return true;
  connecting ??= connect().finally(() => (connecting = null));
  return connecting;
}

async function connect() {
  show.state("Connecting…");
  const key = sessionStorage.getItem(KEY);
  try {
    await realtime.connect(key, element("mode").value);
  } catch ({ cause }) {
    if (cause?.left) return connect(); // while it was being made: who waits for it gets the one that is wanted now
    const { words, needsKey = false } = await whyNot(key);
    show.state("Not connected");
    show.problem(words, { needsKey, retry: !needsKey });
    return false;
  }
  show.noProblem();
  if (log.used) log.note("A new conversation: what is above is forgotten.");
  show.state("Ready");
  return true;
}

async function send() {
  const field = element("text");
  const text = field.value.trim();
  if (!text || !(await ready())) return;
  field.value = "";
  await talk.say(text);
}

/** Sound can be played, and a session is open. */
async function ready() {
  await player.unlock();
  return connected();
}

async function toggleMicrophone() {
  if (microphone.on) {
    microphone.stop();
    realtime.clear();
  } else if (await ready()) {
    try {
      await microphone.start((samples) => realtime.append(samples));
    } catch (error) {
      show.problem(wordsForMicrophone(error));
    }
  }
  showMicrophone();
}

/** Ends the session; the next turn begins another one. */
function leave() {
  realtime.close();
  talk.lost();
  show.noProblem();
  show.state("Ready");
  if (microphone.on) connected();
}

function showMicrophone() {
  element("microphone").setAttribute("aria-pressed", microphone.on);
  document.body.classList.toggle("listening", microphone.on);
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
element("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && talk.busy) talk.interrupt();
});
element("microphone").addEventListener("click", toggleMicrophone);
element("stop").addEventListener("click", () => talk.interrupt());
element("mode").addEventListener("change", leave);
element("dismiss").addEventListener("click", show.noProblem);
element("retry").addEventListener("click", connected);
element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, element("key").value.trim());
  element("key").value = "";
  connected();
});
element("anew").addEventListener("click", () => {
  leave();
  talk.forget();
  element("log").append(hint);
});
realtime.addEventListener("lost", async ({ detail }) => {
  talk.lost();
  microphone.stop();
  showMicrophone();
  show.state("Not connected");
  if (!connecting) show.problem(detail.wasClean ? "The gateway closed the connection." : "The connection was lost.", { retry: true });
});

const ok = await fetch("health/ready").then((answer) => answer.ok, () => false);
show.state(ok ? "Ready" : "Not connected");
if (!ok) show.problem((await whyNot(sessionStorage.getItem(KEY))).words, { retry: true });
