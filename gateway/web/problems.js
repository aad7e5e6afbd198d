// What went wrong, in words for the person at the page.

const BY_CODE = {
  server_full: "All places are taken. Wait a moment and ask again.",
  shutting_down: "The server is being shut down. Try again in a minute.",
  unhealthy: "A part of the server has failed; it starts again by itself. Ask again in a few seconds.",
  unavailable: "The speech server cannot be reached. Is it running?",
  not_ready: "The speech server is still starting. Try again in a moment.",
  stream_broken: "The speech server went away in the middle of the answer. Ask again.",
  deadline_exceeded: "The answer took too long and was stopped.",
  rate_limit_exceeded: "You have asked for too much at once. Wait a moment.",
  session_idle: "The connection was closed because nothing happened for a long time.",
  session_expired: "The conversation reached its longest time.",
};

/** An error of the gateway, {code, message}. */
export function wordsFor(error) {
  return BY_CODE[error?.code] ?? `That did not work: ${error?.message || "no reason was given"}`;
}

const BY_NAME = {
  NotAllowedError: "The microphone is blocked. Allow it in the browser's settings for this page, then try again.",
  NotFoundError: "No microphone was found. Plug one in, or write your question.",
  NotReadableError: "The microphone is in use by another program.",
  SecurityError: "Browsers give the microphone to pages over https and on localhost only. You can write your question.",
};

/** Why there is no microphone: what the browser threw. */
export function wordsForMicrophone(error) {
  return BY_NAME[error.name] ?? `The microphone could not be started: ${error.message}`;
}

/** Why there is no connection, which a WebSocket does not tell: {words, needsKey}. */
export async function whyNot(key) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  try {
    const health = await fetch("health/ready");
    const state = await health.json();
    if (state.draining) return { words: BY_CODE.shutting_down };
    if (state.servers_ready === 0) return { words: BY_CODE.unavailable };
    const models = await fetch("v1/models", { headers });
    if (models.status === 401) {
      return { words: key ? "This API key is not known here." : "An API key is needed.", needsKey: true };
    }
    const refused = models.ok ? null : (await models.json()).error;
    return { words: refused ? wordsFor(refused) : "The connection was refused. The gateway may be full; try again." };
  } catch {
    return { words: "The gateway cannot be reached. Is it running, and is the network up?" };
  }
}
