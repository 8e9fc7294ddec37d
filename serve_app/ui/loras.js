// The LoRAs of a request, where the service has any.

import { byId, element } from "./element.js";

export class Loras {
  #chosen = [];
  #known = [];
  #changed;

  constructor(changed) {
    this.#changed = changed;
    byId("lora-add").addEventListener("click", () => {
      const name = byId("lora-choice").value;
      if (name && !this.#chosen.some((one) => one.name === name)) this.#chosen.push({ name, weight: 1 });
      this.#show();
      this.#changed();
    });
  }

  /** listed: names, or objects with a name; nothing hides the control. */
  offer(listed) {
    this.#known = (listed ?? []).map((one) => (typeof one === "string" ? one : one.name));
    byId("lora-choice").replaceChildren(...this.#known.map((name) => new Option(name)));
    this.chosen = this.#chosen;
  }

  get chosen() {
    return this.#chosen.filter((one) => this.#known.includes(one.name));
  }

  set chosen(loras) {
    this.#chosen = loras.map(({ name, weight }) => ({ name, weight }));
    this.#show();
  }

  #show() {
    byId("loras-part").hidden = this.#known.length === 0;
    byId("loras").replaceChildren(...this.chosen.map((one) => this.#row(one)));
  }

  #row(lora) {
    const weigh = (event) => {
      lora.weight = event.target.valueAsNumber;
      this.#changed();
    };
    const leave = () => {
      this.#chosen = this.#chosen.filter((one) => one !== lora);
      this.#show();
      this.#changed();
      byId("lora-add").focus();
    };
    return element(
      "li",
      { className: "row" },
      element("span", { className: "grow" }, lora.name),
      element("input", {
        type: "number", step: "0.05", value: lora.weight, "aria-label": `Weight of ${lora.name}`, on: { input: weigh },
      }),
      element("button", { type: "button", className: "quiet", "aria-label": `Without ${lora.name}`, on: { click: leave } }, "✕"),
    );
  }
}
