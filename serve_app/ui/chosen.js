// The jobs that are ticked in the gallery, and what is done with all of them: download, delete.

import { announce } from "./announce.js";
import { byId } from "./element.js";
import { ask, forget } from "./service.js";
import { fileName } from "./words.js";
import { zipped } from "./zip.js";

export class Chosen {
  #jobs = new Map();
  #sure = false;
  #archive = "";
  #gone;
  #cleared;

  /** gone(id): called when a job is deleted. cleared(): called when none is ticked any more. */
  constructor(gone, cleared) {
    this.#gone = gone;
    this.#cleared = cleared;
    byId("chosen-download").addEventListener("click", () => this.#try(() => this.#download()));
    byId("chosen-delete").addEventListener("click", () => (this.#sure ? this.#try(() => this.#delete()) : this.#show(true)));
    byId("chosen-none").addEventListener("click", () => this.clear());
  }

  /** A job is ticked, or isn't any more. */
  tick(job, ticked) {
    if (ticked) this.#jobs.set(job.job_id, job);
    else this.#jobs.delete(job.job_id);
    this.#show(false);
  }

  clear() {
    this.#jobs.clear();
    this.#cleared();
    this.#show(false);
  }

  // sure: the next click on "Delete" is meant
  #show(sure) {
    this.#sure = sure;
    const count = this.#jobs.size;
    byId("chosen").hidden = count === 0;
    byId("chosen-count").textContent = `${count} chosen`;
    byId("chosen-delete").textContent = sure ? `Delete ${count === 1 ? "it" : `all ${count}`} for good` : "Delete";
    byId("chosen-problem").textContent = "";
  }

  async #try(work) {
    try {
      await work();
    } catch (error) {
      this.#show(false);
      byId("chosen-problem").textContent = error.message;
    }
  }

  async #download() {
    const files = [];
    for (const job of this.#jobs.values()) {
      for (const image of job.images.filter(({ url }) => url !== null)) {
        const bytes = new Uint8Array(await (await ask(image.url)).arrayBuffer());
        // two jobs may have drawn with one seed
        files.push({ name: `${job.job_id.slice(-8)}-${image.index + 1}-${fileName(job, image)}`, bytes });
      }
    }
    URL.revokeObjectURL(this.#archive); // the last one has long been saved
    this.#archive = URL.createObjectURL(zipped(files));
    Object.assign(document.createElement("a"), { href: this.#archive, download: "darkroom.zip" }).click();
    announce(`${files.length} images in darkroom.zip`);
  }

  async #delete() {
    for (const id of [...this.#jobs.keys()]) {
      await forget(id);
      this.#jobs.delete(id);
      this.#gone(id);
    }
    this.clear();
    announce("Deleted");
  }
}
