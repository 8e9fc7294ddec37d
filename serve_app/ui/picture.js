// The image that a request begins with, and its mask.

import { byId } from "./element.js";
import { MaskBrush } from "./mask_brush.js";

const TYPES = new Set(["image/png", "image/jpeg", "image/webp"]);

export class Picture {
  #held = null;
  #changed;

  /** changed(size): called with {width, height} when there is another image, with null else. */
  constructor(changed) {
    this.#changed = changed;
    byId("drop-picture").addEventListener("click", () => this.hold(null));
    byId("drop-mask").addEventListener("click", () => this.mask([], null));
  }

  /** {name, url, width, height, strokes, mask}; null without an image. url, mask: data URLs; strokes: those of the mask. */
  get held() {
    return this.#held;
  }

  /** Begin with a file. */
  async take(file) {
    byId("picture-problem").textContent = "";
    try {
      if (!TYPES.has(file.type)) throw new Error("not of a type that the service reads");
      const url = await dataUrl(file);
      const image = new Image();
      image.src = url;
      await image.decode();
      const held = { name: file.name || "image.png", url, width: image.naturalWidth, height: image.naturalHeight };
      this.hold({ ...held, strokes: [], mask: null });
      this.#changed({ width: held.width, height: held.height });
    } catch {
      byId("picture-problem").textContent = "This can't be read as an image: PNG, JPEG and WebP can.";
    }
  }

  /** Begin with what was held before, or with nothing. */
  hold(held) {
    this.#held = held;
    byId("picture-problem").textContent = "";
    byId("drop").hidden = held !== null;
    byId("picture").hidden = held === null;
    if (held) byId("picture-shown").src = held.url;
    this.#showMask();
    this.#changed(null);
  }

  /** Paint only what the strokes cover; no strokes: all of it. */
  mask(strokes, mask) {
    this.#held = { ...this.#held, strokes, mask };
    this.#showMask();
    this.#changed(null);
  }

  #showMask() {
    const masked = Boolean(this.#held?.mask);
    byId("drop-mask").hidden = !masked;
    byId("inpaint").hidden = !masked;
    byId("paint-mask").textContent = masked ? "Change the mask" : "Paint a mask";
    const canvas = byId("picture-mask");
    canvas.hidden = !masked;
    if (masked) new MaskBrush(canvas, this.#held.width, this.#held.height, this.#held.strokes);
  }
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
