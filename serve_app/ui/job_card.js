// One job in the gallery: its images or how far they are, its settings, what can be done with it.

import { element } from "./element.js";
import { hasEnded } from "./following.js";
import { fileName, safety, settingsOf, standing, titleOf } from "./words.js";

const RENEW_EVERY_MS = 60_000;

export class JobCard {
  #job = null;
  #acts;
  #pictures = element("div", { className: "pictures" });
  #standing = element("p", { className: "standing" });
  #bar = element("progress", { max: 1, "aria-label": "Progress" });
  #prompt = element("p", { className: "prompt" });
  #settings = element("dl", {});
  #cancel;
  #reuse;
  #like;
  #tick;
  #renewAt = 0;
  #up;

  /**
   * acts: reuse(job), begin(url, name), open(job, image), cancel(job), renew(job), tick(job, ticked), isLiked(job), and
   * like(job), which tells whether it is now. up: whether news can come.
   */
  constructor(acts, up) {
    this.#acts = acts;
    this.#up = up;
    this.#cancel = this.#button("Cancel", () => acts.cancel(this.#job));
    this.#reuse = this.#button("Use these settings again", () => acts.reuse(this.#job));
    this.#like = this.#button("☆", () => this.#showLiked(acts.like(this.#job)));
    this.#tick = element("input", { type: "checkbox", "aria-label": "Choose", on: {
      change: () => acts.tick(this.#job, this.#tick.checked),
    } });
    this.node = element(
      "article",
      { className: "job" },
      this.#pictures,
      element(
        "div",
        { className: "told" },
        this.#prompt,
        this.#bar,
        this.#standing,
        element("details", {}, element("summary", {}, "Settings"), this.#settings),
        element("div", { className: "row buttons" }, this.#reuse, this.#cancel, this.#like, this.#tick),
      ),
    );
  }

  get job() {
    return this.#job;
  }

  /** Show the job as it is now. */
  update(job) {
    const before = this.#job;
    this.#job = job;
    this.node.dataset.status = job.status;
    this.node.dataset.job = job.job_id;
    const ended = hasEnded(job);
    this.connected(this.#up);
    this.#bar.hidden = ended;
    this.#bar.value = job.progress.fraction;
    this.#cancel.hidden = ended;
    this.#tick.hidden = !ended;
    if (before === null) {
      this.#prompt.textContent = titleOf(job);
      this.node.setAttribute("aria-label", titleOf(job));
      this.#showLiked(this.#acts.isLiked(job));
      this.#reuse.hidden = Boolean(job.request.operation); // a picture made larger has no settings of the form
      for (const [name, value] of settingsOf(job.request)) {
        this.#settings.append(element("dt", {}, name), element("dd", {}, value));
      }
    }
    if (!ended) this.#showProgress(job);
    else if (before === null || !hasEnded(before)) this.#showImages(job);
  }

  /** Say that the connection is lost, or that news come again. */
  connected(up) {
    this.#up = up;
    const lost = !up && !hasEnded(this.#job);
    this.node.classList.toggle("lost", lost);
    this.#standing.textContent = `${lost ? "Connection lost, trying again. Last heard: " : ""}${standing(this.#job)}`;
  }

  #showProgress(job) {
    while (this.#pictures.children.length < (job.request.n ?? 1)) this.#pictures.append(frame(null));
    for (const [index, preview] of Object.entries(job.previews ?? {})) {
      const place = this.#pictures.children[index];
      if (!place) continue;
      const shown = place.querySelector("img") ?? place.appendChild(element("img", { className: "preview", alt: "Preview" }));
      if (shown.src !== preview) shown.src = preview;
    }
  }

  #showImages(job) {
    this.#pictures.replaceChildren(...job.images.map((image) => (image.url === null ? withheld(image) : this.#image(job, image))));
    this.#pictures.hidden = job.images.length === 0;
  }

  #image(job, image) {
    const name = fileName(job, image);
    const shown = element("img", {
      src: image.url, alt: titleOf(job), width: image.width, height: image.height, loading: "lazy", decoding: "async",
      on: { error: () => this.#renew(job) },
    });
    const open = element("button", {
      type: "button", className: "open", "aria-label": `Open image ${image.index + 1}${image.seed === null ? "" : `, seed ${image.seed}`}`,
      on: { click: () => this.#acts.open(job, image) },
    }, shown);
    const save = element("a", { href: image.url, download: name, className: "save", title: "Download", "aria-label": `Download ${name}` }, "⤓");
    const begin = element("button", {
      type: "button", className: "save", title: "Begin with this image", "aria-label": `Begin with image ${image.index + 1}`,
      on: { click: () => this.#acts.begin(image.url, name) },
    }, "✎");
    return frame(image.nsfw, open, element("div", { className: "over" }, begin, save));
  }

  // the address of an image is good for an hour or two where there are keys, and then asked for anew; an image that can't
  // be had for another reason is not to be asked for all the time
  #renew(job) {
    if (performance.now() < this.#renewAt) return;
    this.#renewAt = performance.now() + RENEW_EVERY_MS;
    this.#acts.renew(job);
  }

  /** It isn't chosen any more. */
  untick() {
    this.#tick.checked = false;
  }

  #showLiked(liked) {
    this.#like.textContent = liked ? "★" : "☆";
    this.#like.setAttribute("aria-label", "Favourite");
    this.#like.setAttribute("aria-pressed", String(liked));
  }

  /** Show the images of a job that has ended anew. */
  renew(job) {
    this.#job = job;
    this.#showImages(job);
  }

  #button(text, click) {
    return element("button", { type: "button", className: "quiet", on: { click } }, text);
  }
}

function withheld(image) {
  const { told } = safety(image.nsfw);
  return frame(image.nsfw, element("p", { className: "withheld" }, told));
}

function frame(nsfw, ...children) {
  const made = element("figure", {}, ...children);
  if (nsfw) {
    const { word, told } = safety(nsfw);
    made.append(element("figcaption", { className: "safety", title: told, "data-safety": word }, word));
  }
  return made;
}
