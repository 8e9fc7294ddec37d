// A job's server-sent events, read with fetch: EventSource can't show a key.

import { ask, connection, Refused } from "./service.js";

// seconds before a lost stream is opened again: the first try, and the longest wait
const FIRST_S = 0.5;
const LONGEST_S = 10;

// longest silence of a stream: several of the service's comments have failed to come
const SILENCE_MS = 60_000;

const LAST = new Set(["complete", "failed", "cancelled", "blocked"]);

/**
 * Calls `told(event, data)` for each event until the job has ended, or `signal` aborts.
 *
 * A stream that breaks off is opened again: its first event says where the job stands by then, so nothing is missed that
 * matters. Raises Refused where the service won't tell (the job is forgotten, the key is gone).
 */
export async function follow(jobId, told, signal) {
  let wait = FIRST_S;
  while (!signal.aborted) {
    try {
      const alive = new AbortController();
      const response = await ask(`jobs/${jobId}/events`, { signal: AbortSignal.any([signal, alive.signal]), cache: "no-store" });
      for await (const { event, data } of read(response.body, alive)) {
        wait = FIRST_S;
        if (event === "error") break;
        told(event, data);
        if (LAST.has(event)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && error.status < 500 && error.status !== 429) throw error;
    }
    await pause(wait, signal);
    wait = Math.min(2 * wait, LONGEST_S);
  }
}

// alive: ends the stream where nothing comes any more, as of a network that was left
async function* read(body, alive) {
  let kept = "";
  let silence;
  const end = () => alive.abort();
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  addEventListener("offline", end);
  try {
    for (;;) {
      silence = setTimeout(end, SILENCE_MS);
      const { done, value } = await reader.read();
      clearTimeout(silence);
      if (done) return;
      const blocks = (kept + value).split("\n\n");
      kept = blocks.pop();
      for (const block of blocks) {
        const event = parsed(block);
        if (event) yield event;
      }
    }
  } finally {
    clearTimeout(silence);
    removeEventListener("offline", end);
    reader.cancel().catch(() => {});
  }
}

function parsed(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) event = line.slice(7);
    else if (line.startsWith("data: ")) data.push(line.slice(6));
  }
  return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
}

// until then, or until the service answers again, or the network is back
const pause = (seconds, signal) =>
  new Promise((resolve) => {
    const over = new AbortController();
    const end = () => (clearTimeout(timer), over.abort(), resolve());
    const timer = setTimeout(end, 1000 * seconds);
    signal.addEventListener("abort", end, { signal: over.signal });
    connection.addEventListener("change", end, { signal: over.signal });
    addEventListener("online", end, { signal: over.signal });
  });
