// The jobs that are waited for, nearest first, with their places and the time that is left.

import { byId, element } from "./element.js";
import { duration, standing, titleOf } from "./words.js";

export class Queue {
  #rows = new Map();
  #cancel;

  /** cancel(job): called with the job that isn't wanted any more. */
  constructor(cancel) {
    this.#cancel = cancel;
  }

  /** jobs: that haven't ended. A single one stands in its card. */
  show(jobs) {
    const sorted = [...jobs].sort((one, other) => one.position - other.position || (one.job_id < other.job_id ? -1 : 1));
    byId("queue").hidden = sorted.length < 2;
    const last = Math.max(0, ...sorted.map((job) => job.progress.eta_seconds ?? 0));
    byId("queue-length").textContent = `${sorted.length} jobs${last ? `, all done in about ${duration(last)}` : ""}`;
    for (const id of [...this.#rows.keys()]) {
      if (sorted.some((job) => job.job_id === id)) continue;
      this.#rows.get(id).node.remove();
      this.#rows.delete(id);
    }
    for (const [index, job] of sorted.entries()) {
      const row = this.#rows.get(job.job_id) ?? this.#row(job);
      row.line.textContent = standing(job);
      const place = byId("queue-jobs").children[index] ?? null;
      if (place !== row.node) byId("queue-jobs").insertBefore(row.node, place); // elsewhere it keeps the focus
    }
  }

  #row(job) {
    const title = titleOf(job);
    const line = element("span", { className: "standing" });
    const cancel = element("button", { type: "button", className: "quiet", "aria-label": `Cancel ${title}`, on: {
      click: () => this.#cancel(job),
    } }, "✕");
    const node = element("li", { className: "row" }, element("span", { className: "grow title" }, title), line, cancel);
    this.#rows.set(job.job_id, { node, line });
    return this.#rows.get(job.job_id);
  }
}
