// The box that shows the current settings as an API call, to copy.

import { announce } from "./announce.js";
import { curl, python } from "./api_call.js";
import { byId } from "./element.js";
import { hasKey } from "./key.js";

export class ApiBox {
  #write = curl;
  #asked;

  /** asked(): the current request, with a FileName in place of each picture. */
  constructor(asked) {
    this.#asked = asked;
    byId("as-curl").addEventListener("click", () => this.#choose(curl));
    byId("as-python").addEventListener("click", () => this.#choose(python));
    byId("copy-call").addEventListener("click", () => this.#copy());
    byId("api").addEventListener("toggle", () => this.show());
  }

  /** Write the call anew, where it can be seen. */
  show() {
    if (!byId("api").open) return;
    const url = new URL("generate", document.baseURI).href;
    byId("api-call").textContent = this.#write(this.#asked(), url, hasKey());
  }

  #choose(write) {
    this.#write = write;
    byId("as-curl").setAttribute("aria-pressed", String(write === curl));
    byId("as-python").setAttribute("aria-pressed", String(write === python));
    this.show();
  }

  async #copy() {
    const text = byId("api-call").textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // only pages that came by TLS or from this machine may write there; the old way needs the text selected
      getSelection().selectAllChildren(byId("api-call"));
      document.execCommand("copy");
    }
    announce("Copied");
    const button = byId("copy-call");
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }
}
