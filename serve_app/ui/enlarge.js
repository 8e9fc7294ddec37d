// The dialog in which a picture is asked for at a larger size.

import { byId } from "./element.js";
import { dataUrl } from "./picture.js";
import { ask, upscale } from "./service.js";
import { worded } from "./labels.js";

export class EnlargeDialog {
  #dialog = byId("enlarge");
  #url = null;

  /** accepted(job): called with the job that a request has become. */
  constructor(accepted) {
    byId("enlarge-close").addEventListener("click", () => this.#dialog.close());
    byId("enlarge-form").addEventListener("submit", async (event) => {
      event.preventDefault();
      byId("enlarge-problem").textContent = "";
      try {
        const job = await upscale(await this.#request());
        this.#dialog.close();
        accepted(job);
      } catch (error) {
        byId("enlarge-problem").textContent = worded(error.message, error.field ?? null);
      }
    });
  }

  /** upscalers: the names of GET /models. */
  offer(upscalers) {
    byId("enlarge-upscaler").replaceChildren(...upscalers.map((name) => new Option(name)));
  }

  /** url: of the picture, at this service or as data. */
  open(url) {
    this.#url = url;
    byId("enlarge-problem").textContent = "";
    this.#dialog.showModal();
  }

  async #request() {
    const image = this.#url.startsWith("data:") ? this.#url : await dataUrl(await (await ask(this.#url)).blob());
    const scale = byId("enlarge-scale").valueAsNumber;
    return { image, upscaler: byId("enlarge-upscaler").value, ...(Number.isNaN(scale) ? {} : { scale }) };
  }
}
