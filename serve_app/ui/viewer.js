// One image by itself, with its settings and what can be done with it; the arrow keys go through all of them.

import { Compare } from "./compare.js";
import { able, byId, element } from "./element.js";
import { ofImage } from "./job_request.js";
import { fileName, safety, settingsOf, titleOf } from "./words.js";
import { Zoom } from "./zoom.js";

export class Viewer {
  #all;
  #shown = null;
  #zoom = new Zoom();
  #compare = new Compare();

  /**
   * all(): every image, as [{job, image}]. acts: what is done with the one that is shown, each called with (job, image):
   * begin, enlarge, sameSeed, vary, verify.
   */
  constructor(all, acts) {
    this.#all = all;
    const dialog = byId("viewer");
    byId("viewer-close").addEventListener("click", () => dialog.close());
    byId("viewer-previous").addEventListener("click", () => this.#go(-1));
    byId("viewer-next").addEventListener("click", () => this.#go(1));
    byId("viewer-compare").addEventListener("click", () => this.#compare.toggle(this.#shown.image));
    for (const [id, act] of [["begin", acts.begin], ["enlarge", acts.enlarge], ["same-seed", acts.sameSeed], ["vary", acts.vary], ["verify", acts.verify]]) {
      byId(`viewer-${id}`).addEventListener("click", () => {
        for (const open of document.querySelectorAll("dialog[open]")) open.close(); // a grid's, too
        act(this.#shown.job, this.#shown.image);
      });
    }
    dialog.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by && !event.target.matches("input")) this.#go(by);
      else if (event.key === "+" || event.key === "-") this.#zoom.step(event.key === "+" ? 1 : -1);
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // beside it
    });
    dialog.addEventListener("close", () => this.#compare.end());
  }

  open(job, image) {
    this.#shown = { job, image };
    const picture = byId("viewer-image");
    Object.assign(picture, { src: image.url, alt: titleOf(job), width: image.width, height: image.height });
    this.#zoom.fit();
    byId("viewer-prompt").textContent = titleOf(job);
    const rows = [...settingsOf(job.request.operation ? job.request : ofImage(job.request, image)), ["Safety", safety(image.nsfw).told]];
    byId("viewer-settings").replaceChildren(
      ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
    );
    Object.assign(byId("viewer-download"), { href: image.url, download: fileName(job, image) });
    for (const id of ["viewer-same-seed", "viewer-vary"]) byId(id).hidden = Boolean(job.request.operation);
    able("viewer-previous", Boolean(this.#beside(-1)));
    able("viewer-next", Boolean(this.#beside(1)));
    const dialog = byId("viewer");
    if (!dialog.open) dialog.showModal();
  }

  #go(by) {
    const next = this.#beside(by);
    if (next) this.open(next.job, next.image);
  }

  #beside(by) {
    const all = this.#all();
    return all[all.findIndex(({ image }) => image.url === this.#shown.image.url) + by];
  }
}
