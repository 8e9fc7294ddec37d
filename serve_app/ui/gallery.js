// The caller's jobs as the service keeps them, newest first.

import { Chosen } from "./chosen.js";
import { byId } from "./element.js";
import { Favourites } from "./favourites.js";
import { hasEnded } from "./following.js";
import { JobCard } from "./job_card.js";
import { jobsPage, quietly } from "./service.js";
import { Shown } from "./shown.js";

const PAGE = 12;
const LONGEST_PAGE = 100;

export class Gallery {
  #cards = new Map();
  #gone = new Set();
  #next = null;
  #up = true;
  #acts;
  #seen;
  #searching = false;
  #favourites = new Favourites();
  #shown = new Shown(this.#favourites, () => quietly(this.#search()));
  #chosen = new Chosen((id) => this.#remove(id), () => this.#untick());

  /** acts: what a card can do (job_card.js). seen(job): called with each job that the service lists. */
  constructor(acts, seen) {
    this.#acts = {
      ...acts,
      tick: (job, ticked) => this.#chosen.tick(job, ticked),
      isLiked: (job) => this.#favourites.has(job.job_id),
      like: (job) => {
        const liked = this.#favourites.toggle(job.job_id);
        this.#filter();
        return liked;
      },
    };
    this.#seen = seen;
    byId("older").addEventListener("click", () => this.older());
  }

  /** Ask for the newest jobs: as many as are shown, so that none of them stays behind. */
  async newest() {
    const fresh = this.#cards.size === 0;
    const { jobs, next_cursor: next } = await jobsPage(Math.min(LONGEST_PAGE, Math.max(PAGE, this.#cards.size)), null);
    if (fresh) this.#next = next;
    this.#take(jobs);
  }

  /** Ask for the page after those shown. */
  async older(limit = PAGE) {
    const { jobs, next_cursor: next } = await jobsPage(limit, this.#next);
    this.#next = next;
    this.#take(jobs);
  }

  /** Show a job as it is now. */
  update(job) {
    if (this.#gone.has(job.job_id)) return; // a list that was on its way
    let card = this.#cards.get(job.job_id);
    if (!card) {
      card = new JobCard(this.#acts, this.#up);
      this.#cards.set(job.job_id, card);
      // ids are in the order of time
      const older = [...this.#cards.keys()].filter((id) => id < job.job_id).sort().at(-1);
      byId("jobs").insertBefore(card.node, older ? this.#cards.get(older).node : null);
    }
    card.update(job);
    card.node.hidden = !this.#shown.includes(job);
    byId("empty").hidden = true;
  }

  /** Show a job's images at new addresses. */
  renew(job) {
    this.#cards.get(job.job_id)?.renew(job);
  }

  /** Bring a job into sight, where the gallery is below the form. */
  bring(id) {
    const gallery = byId("gallery");
    if (gallery.getBoundingClientRect().left > byId("settings").getBoundingClientRect().left) return;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.#cards.get(id).node.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "center" });
  }

  /** Whether news can come. */
  connected(up) {
    this.#up = up;
    for (const card of this.#cards.values()) card.connected(up);
  }

  /** What is shown was somebody else's. */
  clear() {
    this.#cards.clear();
    this.#chosen.clear();
    this.#next = null;
    byId("jobs").replaceChildren();
  }

  /** Every image that may be seen, as it stands on the page: [{job, image}]. */
  get images() {
    return [...byId("jobs").children].flatMap((node) => {
      const { job } = this.#cards.get(node.dataset.job);
      return hasEnded(job) && !node.hidden ? job.images.filter((image) => image.url !== null).map((image) => ({ job, image })) : [];
    });
  }

  #take(jobs) {
    for (const job of jobs) this.#seen(job);
    this.#filter();
  }

  #filter() {
    for (const card of this.#cards.values()) card.node.hidden = !this.#shown.includes(card.job);
    byId("older").hidden = this.#next === null || this.#shown.some;
    byId("empty").hidden = this.#cards.size > 0;
    byId("none-found").hidden = this.#cards.size === 0 || this.images.length > 0 || !this.#shown.some;
  }

  // among all jobs, not only those that were shown
  async #search() {
    this.#filter();
    if (this.#searching) return;
    this.#searching = true;
    try {
      while (this.#shown.some && this.#next !== null) await this.older(LONGEST_PAGE);
    } finally {
      this.#searching = false;
    }
  }

  #remove(id) {
    this.#gone.add(id);
    this.#favourites.forget(id);
    this.#cards.get(id)?.node.remove();
    this.#cards.delete(id);
    this.#filter();
  }

  #untick() {
    for (const card of this.#cards.values()) card.untick();
  }
}
