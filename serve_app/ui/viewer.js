// One image by itself, with its settings; the arrow keys go through all of them.

import { byId, element } from "./element.js";
import { safety, settingsOf } from "./words.js";

export class Viewer {
  #all;
  #shown = null;

  /** all(): every image, as [{job, image}]. begin(url, name): begin with the image that is shown. */
  constructor(all, begin) {
    this.#all = all;
    const dialog = byId("viewer");
    byId("viewer-close").addEventListener("click", () => dialog.close());
    byId("viewer-begin").addEventListener("click", () => {
      dialog.close();
      begin(this.#shown.image.url, byId("viewer-download").download);
    });
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
    Object.assign(picture, { src: image.url, alt: job.request.prompt, width: image.width, height: image.height });
    byId("viewer-prompt").textContent = job.request.prompt;
    const rows = [...settingsOf({ ...job.request, seed: image.seed }), ["Safety", safety(image.nsfw).told]];
    byId("viewer-settings").replaceChildren(
      ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
    );
    const ending = image.format === "jpeg" ? "jpg" : image.format;
    Object.assign(byId("viewer-download"), { href: image.url, download: `darkroom-${image.seed}.${ending}` });
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
