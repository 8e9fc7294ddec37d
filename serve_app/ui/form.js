// The settings of a request: controls that the catalogue's models fill, and the request that they make up.

import { byId, element } from "./element.js";
import { Loras } from "./loras.js";
import { shapes, sizeFor } from "./sizes.js";

const DRAFT = "darkroom.draft";

// the controls that a reload of the page keeps
const KEPT = [
  "prompt", "negative-prompt", "model", "width", "height", "steps", "guidance", "sampler", "count", "seed", "refiner",
  "switch-at", "strength", "mask-blur", "mask-padding", "mask-invert", "only-masked", "format", "priority", "clip-skip",
  "reproducible",
];

// of a model's defaults: the control, and the default's name
const DEFAULTS = [
  ["width", "width"], ["height", "height"], ["steps", "steps"], ["guidance", "guidance_scale"], ["sampler", "sampler"],
];

export class SettingsForm {
  #models = new Map();
  #model = null;
  #changed;
  #loras = new Loras(() => this.#moved());

  /** changed(): called when anything is set in another way. */
  constructor(changed) {
    this.#changed = changed;
    const form = byId("settings");
    form.addEventListener("input", (event) => {
      this.#unmark(event.target.closest("[data-field]"));
      this.#moved();
    });
    byId("model").addEventListener("change", () => this.#choose(byId("model").value));
    byId("swap").addEventListener("click", () => this.size({ width: byId("height").value, height: byId("width").value }));
    byId("random-seed").addEventListener("click", () => {
      byId("seed").value = "";
      this.#moved();
    });
    for (const name of ["steps", "guidance"]) this.#slide(byId(name), byId(`${name}-slider`));
  }

  /** Fill the controls from GET /models, and with what was set before the page was loaded again. */
  offer(catalogue) {
    this.#models = new Map(catalogue.models.map((model) => [model.name, { loras: catalogue.loras, ...model }]));
    byId("model").replaceChildren(...catalogue.models.map((model) => new Option(model.name)));
    byId("sampler").replaceChildren(...catalogue.samplers.map((name) => new Option(name)));
    const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "{}");
    const name = this.#models.has(draft.model) ? draft.model : catalogue.default;
    byId("model").value = name;
    this.#model = null;
    this.#choose(name);
    for (const id of KEPT) {
      if (!(id in draft) || id === "model") continue;
      const control = byId(id);
      if (control.type === "checkbox") control.checked = draft[id];
      else control.value = draft[id];
    }
    this.#moved();
  }

  /** The request without its images. picture: as Picture holds it. */
  body(picture) {
    const body = { prompt: byId("prompt").value };
    if (byId("negative-prompt").value) body.negative_prompt = byId("negative-prompt").value;
    body.model = byId("model").value;
    put(body, "width", number("width"));
    put(body, "height", number("height"));
    put(body, "steps", number("steps"));
    put(body, "guidance_scale", number("guidance"));
    body.scheduler = byId("sampler").value;
    put(body, "n", number("count"));
    put(body, "seed", number("seed"));
    if (this.#model?.refiner) body.refiner = byId("refiner").checked ? { switch_at: number("switch-at") } : false;
    if (this.#loras.chosen.length) body.loras = this.#loras.chosen;
    if (number("clip-skip")) body.clip_skip = number("clip-skip");
    body.output_format = byId("format").value;
    if (byId("priority").value !== "normal") body.priority = byId("priority").value;
    if (byId("reproducible").checked) body.reproducible = true;
    if (picture) {
      body.strength = number("strength");
      if (picture.mask) {
        body.inpaint = { invert: byId("mask-invert").checked, only_masked: byId("only-masked").checked };
        put(body.inpaint, "blur", number("mask-blur"));
        put(body.inpaint, "padding", number("mask-padding"));
      }
    }
    return body;
  }

  /** Set everything as a job's resolved request has it. */
  fill(request) {
    if (this.#models.has(request.model)) {
      byId("model").value = request.model;
      this.#choose(request.model);
    }
    const set = {
      prompt: request.prompt, "negative-prompt": request.negative_prompt, width: request.width, height: request.height,
      steps: request.steps, guidance: request.guidance_scale, sampler: request.sampler, count: request.n, seed: request.seed,
      format: request.output_format, priority: request.priority, "clip-skip": request.clip_skip ?? 0,
    };
    for (const [id, value] of Object.entries(set)) byId(id).value = value;
    byId("reproducible").checked = request.reproducible;
    byId("refiner").checked = request.refiner !== null;
    if (request.switch_at !== null) byId("switch-at").value = request.switch_at;
    this.#loras.chosen = request.loras ?? [];
    if (request.image) {
      byId("strength").value = request.image.strength;
      byId("mask-blur").value = request.image.blur;
      byId("mask-padding").value = request.image.padding;
      byId("mask-invert").checked = request.image.invert;
      byId("only-masked").checked = request.image.only_masked;
    }
    this.clear();
    this.#moved();
  }

  /** Draw at this size. */
  size({ width, height }) {
    byId("width").value = width;
    byId("height").value = height;
    this.#unmark(byId("width").closest("[data-field]"));
    this.#unmark(byId("height").closest("[data-field]"));
    this.#moved();
  }

  /** Draw at the size that suits an image of so many pixels. */
  suit({ width, height }) {
    if (this.#model) this.size(sizeFor(width, height, this.#model));
  }

  /** The strength that the service would take itself. */
  strength(value) {
    byId("strength").value = value;
    this.#moved();
  }

  /** Show what the service refused: beside its field, or below the button. True where it has a field here. */
  refuse(error) {
    this.clear();
    const field = error.field && this.#place(error.field);
    if (!field) {
      byId("problem").textContent = error.message;
      return false;
    }
    const control = field.querySelector("textarea, input:not([aria-hidden]), select");
    const told = element("p", { className: "error told", id: `problem-${error.field.replaceAll(".", "-")}` }, error.message);
    field.append(told);
    field.classList.add("wrong");
    field.closest("details")?.setAttribute("open", "");
    control?.setAttribute("aria-invalid", "true");
    control?.setAttribute("aria-describedby", told.id);
    control?.focus();
    return true;
  }

  /** Take back what `refuse` has shown. */
  clear() {
    byId("problem").textContent = "";
    for (const field of document.querySelectorAll("#settings .wrong")) this.#unmark(field);
  }

  #place(name) {
    const fields = [...document.querySelectorAll("#settings [data-field]")];
    const named = (one) => fields.find((field) => field.dataset.field === one || field.dataset.also === one);
    return named(name) ?? named(name.split(".")[0]);
  }

  #unmark(field) {
    if (!field?.classList.contains("wrong")) return;
    field.classList.remove("wrong");
    for (const told of field.querySelectorAll(".told")) told.remove();
    for (const control of field.querySelectorAll("[aria-invalid]")) {
      control.removeAttribute("aria-invalid");
      control.removeAttribute("aria-describedby");
    }
  }

  #choose(name) {
    const before = this.#model;
    const model = this.#models.get(name);
    this.#model = model;
    byId("model-about").textContent = [model.description, model.licence].filter(Boolean).join(" · ");
    const { limits, defaults } = model;
    for (const [id, range] of [["width", limits.width], ["height", limits.height]]) bound(byId(id), range);
    for (const [id, range] of [["steps", limits.steps], ["guidance", limits.guidance_scale]]) {
      bound(byId(id), range);
      bound(byId(`${id}-slider`), range);
    }
    byId("clip-skip").max = limits.max_clip_skip;
    for (const [id, of] of DEFAULTS) {
      const control = byId(id);
      // what was left as the model before had it follows; what somebody has chosen stays
      if (!before || control.value === String(before.defaults[of])) control.value = defaults[of];
    }
    byId("refiner-part").hidden = !model.refiner;
    if (model.refiner && before?.refiner?.model !== model.refiner.model) {
      byId("refiner").checked = true;
      byId("switch-at").value = model.refiner.switch_at;
    }
    this.#loras.offer(model.loras);
    byId("shapes").replaceChildren(...shapes(model).map((shape) => this.#shape(shape)));
    this.#moved();
  }

  #shape({ name, width, height }) {
    const drawn = element("span", { className: "outline" });
    const unit = 1.5 / Math.max(width, height);
    Object.assign(drawn.style, { width: `${width * unit}rem`, height: `${height * unit}rem` });
    const button = element("button", { type: "button", title: `${name}: ${width} × ${height}`, "aria-label": name, on: {
      click: () => this.size({ width, height }),
    } }, drawn);
    button.dataset.size = `${width}x${height}`;
    return button;
  }

  #slide(field, slider) {
    slider.addEventListener("input", () => (field.value = slider.value));
  }

  #moved() {
    for (const name of ["steps", "guidance"]) byId(`${name}-slider`).value = byId(name).value;
    byId("switch-at-shown").textContent = `${Math.round(100 * byId("switch-at").value)} %`;
    byId("switch-at").closest(".field").hidden = !byId("refiner").checked;
    byId("strength-shown").textContent = Number(byId("strength").value).toFixed(2);
    const size = `${byId("width").value}x${byId("height").value}`;
    for (const shape of byId("shapes").children) shape.setAttribute("aria-pressed", String(shape.dataset.size === size));
    const draft = KEPT.map((id) => [id, byId(id).type === "checkbox" ? byId(id).checked : byId(id).value]);
    if (this.#model) sessionStorage.setItem(DRAFT, JSON.stringify(Object.fromEntries(draft)));
    this.#changed();
  }
}

// what is no number goes as it is, and comes back with the service's own words
function number(id) {
  const text = byId(id).value.trim();
  if (text === "") return undefined;
  const value = Number(text);
  return Number.isFinite(value) && Math.abs(value) <= Number.MAX_SAFE_INTEGER ? value : text;
}

function put(body, field, value) {
  if (value !== undefined) body[field] = value;
}

function bound(control, { min, max }) {
  control.min = min;
  control.max = max;
}
