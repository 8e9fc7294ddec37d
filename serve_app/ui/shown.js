// What of the gallery is shown, and how large: a search, the favourites alone, the size of a card.

import { byId } from "./element.js";
import { titleOf } from "./words.js";

const KEPT = "darkroom.thumbnails";

export class Shown {
  #liked = byId("favourites-only");
  #favourites;

  /** favourites: of favourites.js. changed(): called when others are to be shown. */
  constructor(favourites, changed) {
    this.#favourites = favourites;
    byId("search").addEventListener("input", changed);
    this.#liked.addEventListener("click", () => {
      this.#liked.setAttribute("aria-pressed", String(this.#liked.getAttribute("aria-pressed") !== "true"));
      changed();
    });
    const size = byId("thumbnails");
    size.value = localStorage.getItem(KEPT) ?? size.value;
    const apply = () => byId("jobs").style.setProperty("--thumbnail", `${size.value}rem`);
    apply();
    size.addEventListener("input", () => {
      apply();
      localStorage.setItem(KEPT, size.value);
    });
  }

  /** Whether only some jobs are shown. */
  get some() {
    return this.#words.length > 0 || this.#liked.getAttribute("aria-pressed") === "true";
  }

  /** Whether a job is. */
  includes(job) {
    if (this.#liked.getAttribute("aria-pressed") === "true" && !this.#favourites.has(job.job_id)) return false;
    const { negative_prompt: negative = "", model = "", seed = "" } = job.request;
    const text = [titleOf(job), negative, model, seed].join(" ").toLowerCase();
    return this.#words.every((word) => text.includes(word));
  }

  get #words() {
    return byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  }
}
