// Two images in one place, the first over the other up to a line that a slider moves.

import { byId } from "./element.js";

export class Compare {
  #button = byId("viewer-compare");
  #over = byId("viewer-over");
  #slider = byId("viewer-line");

  constructor() {
    this.#slider.addEventListener("input", () => this.#cut());
  }

  /** Compare those that are looked at from now on with this image; or end that. */
  toggle(image) {
    if (this.#button.getAttribute("aria-pressed") === "true") {
      this.end();
      return;
    }
    this.#over.src = image.url;
    this.#slider.value = 50;
    this.#cut();
    this.#show(true);
  }

  /** Show one image alone. */
  end() {
    this.#show(false);
  }

  #show(compared) {
    this.#button.setAttribute("aria-pressed", String(compared));
    this.#over.hidden = !compared;
    byId("viewer-comparing").hidden = !compared;
  }

  #cut() {
    this.#over.style.clipPath = `inset(0 ${100 - this.#slider.value}% 0 0)`;
  }
}
