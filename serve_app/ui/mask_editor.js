// The dialog in which a mask is painted: by mouse, pen, finger or keyboard.

import { byId } from "./element.js";
import { MaskBrush } from "./mask_brush.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class MaskEditor {
  #dialog = byId("mask-editor");
  #canvas = byId("brush-canvas");
  #frame = byId("brush-frame");
  #ring = byId("brush-ring");
  #size = byId("brush-size");
  #brush = null;
  #erases = false;
  #at = [0, 0];
  #pointer = "";
  #done = null;

  constructor() {
    const frame = this.#frame;
    frame.addEventListener("pointerdown", (event) => this.#press(event));
    frame.addEventListener("pointermove", (event) => this.#move(event));
    for (const over of ["pointerup", "pointercancel"]) frame.addEventListener(over, () => this.#brush.end());
    frame.addEventListener("pointerleave", () => (this.#ring.hidden = true));
    frame.addEventListener("focus", () => frame.matches(":focus-visible") && this.#showRing());
    this.#dialog.addEventListener("keydown", (event) => this.#key(event));
    this.#size.addEventListener("input", () => this.#showRing());
    byId("brush-paint").addEventListener("click", () => this.#erase(false));
    byId("brush-erase").addEventListener("click", () => this.#erase(true));
    byId("brush-undo").addEventListener("click", () => this.#brush.undo());
    byId("brush-clear").addEventListener("click", () => this.#brush.clear());
    byId("mask-cancel").addEventListener("click", () => this.#dialog.close());
    byId("mask-done").addEventListener("click", () => {
      this.#done(this.#brush.strokes, this.#brush.toPng());
      this.#dialog.close();
    });
  }

  /** held: as Picture has it. done(strokes, mask): called when the mask is to be used; mask null where it is empty. */
  open(held, done) {
    this.#done = done;
    byId("brush-image").src = held.url;
    this.#brush = new MaskBrush(this.#canvas, held.width, held.height, held.strokes);
    const shorter = Math.min(held.width, held.height);
    Object.assign(this.#size, { min: 2, max: Math.max(16, Math.round(shorter / 2)), value: Math.round(shorter / 6) });
    this.#frame.style.aspectRatio = `${held.width} / ${held.height}`;
    this.#frame.style.setProperty("--ratio", held.width / held.height);
    this.#at = [held.width / 2, held.height / 2];
    this.#ring.hidden = true;
    this.#erase(false);
    this.#dialog.showModal();
    this.#frame.focus({ focusVisible: false });
  }

  #erase(erases) {
    this.#erases = erases;
    byId("brush-paint").setAttribute("aria-pressed", String(!erases));
    byId("brush-erase").setAttribute("aria-pressed", String(erases));
  }

  #press(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.#frame.focus({ focusVisible: false });
    this.#frame.setPointerCapture(event.pointerId);
    this.#at = this.#point(event);
    this.#brush.begin(...this.#at, this.#size.valueAsNumber, this.#erases);
    this.#showRing();
  }

  #move(event) {
    const pointer = `${event.clientX} ${event.clientY}`;
    if (pointer === this.#pointer) return; // the page has moved below it; the brush may be where the keys have moved it
    this.#pointer = pointer;
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const one of passed.length ? passed : [event]) {
      this.#at = this.#point(one);
      this.#brush.extend(...this.#at);
    }
    this.#showRing();
  }

  #point({ clientX, clientY }) {
    const box = this.#canvas.getBoundingClientRect();
    const scale = this.#canvas.width / box.width;
    return [(clientX - box.left) * scale, (clientY - box.top) * scale];
  }

  #key(event) {
    const typing = event.target === this.#size;
    if (event.key === "z" && (event.ctrlKey || event.metaKey)) this.#brush.undo();
    else if (event.ctrlKey || event.metaKey || event.altKey) return;
    else if (event.key === "[" || event.key === "]") this.#resize(event.key === "]" ? 1.25 : 0.8);
    else if (event.key.toLowerCase() === "e") this.#erase(!this.#erases);
    else if (!typing && event.key in ARROWS && event.target === this.#frame) this.#step(ARROWS[event.key]);
    else if (event.key === " " && event.target === this.#frame) {
      this.#brush.begin(...this.#at, this.#size.valueAsNumber, this.#erases);
      this.#brush.end();
    } else return;
    event.preventDefault();
  }

  #step([right, down]) {
    const far = Math.max(1, this.#size.valueAsNumber / 2);
    const { width, height } = this.#canvas;
    const [x, y] = this.#at;
    this.#at = [Math.min(width, Math.max(0, x + right * far)), Math.min(height, Math.max(0, y + down * far))];
    this.#showRing();
  }

  #resize(factor) {
    const size = this.#size.valueAsNumber;
    this.#size.value = factor > 1 ? Math.ceil(size * factor) : Math.floor(size * factor);
    this.#showRing();
  }

  #showRing() {
    const scale = this.#canvas.clientWidth / this.#canvas.width;
    const across = this.#size.valueAsNumber * scale;
    const [x, y] = this.#at;
    this.#ring.hidden = false;
    Object.assign(this.#ring.style, {
      width: `${across}px`,
      height: `${across}px`,
      transform: `translate(${x * scale - across / 2}px, ${y * scale - across / 2}px)`,
    });
  }
}
