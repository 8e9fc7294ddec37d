// Which jobs are followed live: as many as leave the browser connections for everything else.
//
// A browser opens six connections to a service that speaks HTTP/1.1, for all of its tabs together. So a tab that can be seen
// has two event streams, those of the jobs nearest to their end; the others are asked about together, now and then. A
// tab that can't be seen asks for nothing.

import { follow } from "./events.js";

const STREAMS = 2;
const ASK_EVERY_MS = 2000;

const ENDED = new Set(["complete", "failed", "cancelled", "blocked"]);

export const hasEnded = (job) => ENDED.has(job.status);

export class Following {
  #jobs = new Map();
  #streams = new Map();
  #timer = null;
  #moved;
  #askAgain;

  /** moved(job): called with each news of a job. askAgain(): asks for the newest jobs, and calls `see` with them. */
  constructor(moved, askAgain) {
    this.#moved = moved;
    this.#askAgain = askAgain;
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.#rest();
      else this.#askAgain();
    });
  }

  /** A job as it was just told. */
  see(job) {
    const known = this.#jobs.get(job.job_id);
    if (hasEnded(job)) this.#jobs.delete(job.job_id);
    else if (!this.#streams.has(job.job_id)) this.#jobs.set(job.job_id, { ...job, previews: known?.previews });
    this.#arrange();
  }

  /** Follow nothing any more: whoever was told of these jobs may not be who looks now. */
  clear() {
    this.#jobs.clear();
    this.#rest();
  }

  /** Whether news of a job come by themselves. */
  hears(id) {
    return this.#streams.has(id);
  }

  /** Jobs that haven't ended, oldest first. */
  get unfinished() {
    return [...this.#jobs.values()].sort((one, other) => (one.job_id < other.job_id ? -1 : 1));
  }

  #arrange() {
    for (const [id, stream] of this.#streams) {
      if (this.#jobs.has(id)) continue;
      stream.abort();
      this.#streams.delete(id);
    }
    if (document.hidden) return;
    const nearest = this.unfinished.sort((one, other) => one.position - other.position);
    for (const { job_id: id } of nearest) {
      if (this.#streams.size >= STREAMS) break;
      if (!this.#streams.has(id)) this.#open(id);
    }
    const more = this.#jobs.size > this.#streams.size;
    if (more && this.#timer === null) this.#timer = setInterval(this.#askAgain, ASK_EVERY_MS);
    else if (!more) this.#stopAsking();
  }

  async #open(id) {
    const stream = new AbortController();
    this.#streams.set(id, stream);
    try {
      await follow(id, (event, data) => this.#told(id, event, data), stream.signal);
    } catch {
      this.#jobs.delete(id); // forgotten, or not ours any more
    }
    if (this.#streams.get(id) === stream) this.#streams.delete(id);
    this.#arrange();
  }

  #told(id, event, data) {
    const known = this.#jobs.get(id);
    if (!known) return;
    let job = data; // the last event is the job itself
    if (event === "queued") {
      job = { ...known, position: data.position, progress: { ...known.progress, eta_seconds: data.eta_seconds } };
    } else if (event === "progress") {
      const { status, preview, preview_image: image, job_id: _, ...progress } = data;
      const previews = preview ? { ...known.previews, [image]: preview } : known.previews;
      job = { ...known, status, progress, previews, position: status === "running" ? 0 : known.position };
    }
    if (hasEnded(job)) this.#jobs.delete(id);
    else this.#jobs.set(id, job);
    this.#moved(job);
  }

  #rest() {
    for (const stream of this.#streams.values()) stream.abort();
    this.#streams.clear();
    this.#stopAsking();
  }

  #stopAsking() {
    clearInterval(this.#timer);
    this.#timer = null;
  }
}
