// How large the viewer shows its image: fitted, or its pixels one, two, four times. A click looks closer where it is.

import { able, byId } from "./element.js";

const TIMES = [null, 1, 2, 4];

export class Zoom {
  #frame = byId("viewed");
  #image = byId("viewer-image");
  #level = 0;

  constructor() {
    byId("viewer-closer").addEventListener("click", () => this.step(1));
    byId("viewer-farther").addEventListener("click", () => this.step(-1));
    byId("viewed").addEventListener("click", ({ clientX, clientY }) => {
      const box = this.#image.getBoundingClientRect();
      const at = [(clientX - box.left) / box.width, (clientY - box.top) / box.height];
      this.#set((this.#level + 1) % TIMES.length, at);
    });
  }

  /** Closer, or farther: by a level. */
  step(by) {
    this.#set(Math.min(TIMES.length - 1, Math.max(0, this.#level + by)), [0.5, 0.5]);
  }

  /** All of the image. */
  fit() {
    this.#set(0, [0.5, 0.5]);
  }

  // at: the fractions of the image that are to be in the middle
  #set(level, [across, down]) {
    this.#level = level;
    const times = TIMES[level];
    this.#frame.classList.toggle("close", times !== null);
    this.#image.style.width = times === null ? "" : `${this.#image.getAttribute("width") * times}px`;
    byId("viewer-zoom").textContent = times === null ? "fitted" : `${100 * times} %`;
    able("viewer-farther", level > 0);
    able("viewer-closer", level < TIMES.length - 1);
    const { offsetWidth: width, offsetHeight: height } = this.#image;
    this.#frame.scrollTo(across * width - this.#frame.clientWidth / 2, down * height - this.#frame.clientHeight / 2);
  }
}
