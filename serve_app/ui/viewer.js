// One image by itself, with its settings; the arrow keys go through all of them.

import { byId, element } from "./element.js";
import { fileName, safety, settingsOf, titleOf } from "./words.js";

export class Viewer {
  #all;
  #shown = null;

  /** all(): every image, as [{job, image}]. acts: what is done with the one that is shown: begin(url, name), enlarge(image). */
  constructor(all, acts) {
    this.#all = all;
    const dialog = byId("viewer");
    byId("viewer-close").addEventListener("click", () => dialog.close());
    const act = (name, does) => byId(`viewer-${name}`).addEventListener("click", () => {
      dialog.close();
      does(this.#shown);
    });
    act("begin", ({ job, image }) => acts.begin(image.url, fileName(job, image)));
    act("enlarge", ({ image }) => acts.enlarge(image));
    dialog.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by) this.#go(by);
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // beside it
    });
  }

  open(job, image) {
    this.#shown = { job, image };
    const picture = byId("viewer-image");
    Object.assign(picture, { src: image.url, alt: titleOf(job), width: image.width, height: image.height });
    byId("viewer-prompt").textContent = titleOf(job);
    const rows = [...settingsOf({ ...job.request, seed: image.seed }), ["Safety", safety(image.nsfw).told]];
    byId("viewer-settings").replaceChildren(
      ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
    );
    Object.assign(byId("viewer-download"), { href: image.url, download: fileName(job, image) });
    const dialog = byId("viewer");
    if (!dialog.open) dialog.showModal();
  }

  #go(by) {
    const all = this.#all();
    const at = all.findIndex(({ image }) => image.url === this.#shown.image.url);
    const next = all[at + by];
    if (next) this.open(next.job, next.image);
  }
}
