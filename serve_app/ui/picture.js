// The image that a request begins with, and its mask.

import { byId } from "./element.js";
import { MaskBrush } from "./mask_brush.js";

const TYPES = new Set(["image/png", "image/jpeg", "image/webp"]);

/** An image file as {name, url, width, height}, url being a data URL. Raises Error with words to show. */
export async function readPicture(file) {
  try {
    if (!TYPES.has(file.type)) throw new Error("not of a type that the service reads");
    const url = await dataUrl(file);
    const image = new Image();
    image.src = url;
    await image.decode();
    return { name: file.name || "image.png", url, width: image.naturalWidth, height: image.naturalHeight };
  } catch {
    throw new Error("This can't be read as an image: PNG, JPEG and WebP can.");
  }
}

export class Picture {
  #held = null;
  #newest = null;
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
    this.#newest = file;
    byId("picture-problem").textContent = "";
    try {
      const read = await readPicture(file);
      if (this.#newest !== file) return; // another one has come since
      this.hold({ ...read, strokes: [], mask: null });
      this.#changed({ width: read.width, height: read.height });
    } catch (error) {
      if (this.#newest === file) byId("picture-problem").textContent = error.message;
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
    byId("paint-mask").textContent = masked ? "Change the mask" : "Paint a mask";
    const canvas = byId("picture-mask");
    canvas.hidden = !masked;
    if (masked) new MaskBrush(canvas, this.#held.width, this.#held.height, this.#held.strokes);
  }
}

/** A file's contents as a data URL. */
export function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
