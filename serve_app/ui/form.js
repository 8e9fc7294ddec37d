// The settings of a request: controls that the catalogue's models fill, and the request that they make up.
//
// A control's name is the path of its field in the request: "hires.scale". What is hidden is no part of the request.

import { byId, element } from "./element.js";
import { leaves, StoredPicture } from "./job_request.js";
import { labelOf, worded } from "./labels.js";
import { Parts } from "./parts.js";
import { chooseSampler, chosenSampler, offerSamplers } from "./samplers.js";
import { shapes, sizeFor } from "./sizes.js";

const DRAFT = "darkroom.draft";

// of a model's defaults: the fields that have one, and the default's name
const DEFAULTS = { width: "width", height: "height", steps: "steps", guidance_scale: "guidance_scale", scheduler: "sampler" };

const PARTS = ["loras", "controlnets", "references", "regions", "details"];

// fields that have no control of that name, and are seen to elsewhere
const ELSEWHERE = ["model", "scheduler", "refiner", "image", "mask", "preview", ...PARTS];

const named = () => [...byId("settings").elements].filter((control) => control.name);

export class SettingsForm {
  #models = new Map();
  #model = null;
  #changed;
  #parts = Object.fromEntries(PARTS.map((kind) => [kind, new Parts(kind, () => this.#moved())]));
  #begun = { picture: false, masked: false };
  // the size of an image that came before the models
  #unsuited = null;

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
    for (const slider of form.querySelectorAll(".slider > input[type=range]")) {
      slider.addEventListener("input", () => (slider.nextElementSibling.value = slider.value));
    }
  }

  /** Fill the controls from GET /models, and with what was set before the page was loaded again. */
  offer(catalogue) {
    const draft = sessionStorage.getItem(DRAFT); // what follows writes another
    const typed = this.isFilled ? [] : named().filter(isTyped).map((control) => [control, control.value]);
    this.#models = new Map(catalogue.models.map((model) => [model.name, model]));
    byId("model").replaceChildren(...catalogue.models.map((model) => new Option(model.name)));
    byId("hires-model").replaceChildren(...byId("model").cloneNode(true).children);
    byId("hires-model").prepend(new Option("as the first pass", ""));
    byId("hires-model").value = "";
    offerSamplers(catalogue.sampler_choices);
    byId("upscaler").replaceChildren(...catalogue.hires_upscalers.map((name) => new Option(name)));
    byId("vae").replaceChildren(new Option("the model's own", ""), ...catalogue.vaes.map((name) => new Option(name)));
    byId("vae").closest(".field").hidden = !catalogue.vaes.length;
    this.#parts.loras.offer(catalogue.loras);
    this.#parts.controlnets.offer(catalogue.controlnets);
    this.#parts.references.offer(catalogue.ip_adapters);
    this.#parts.details.offer(Object.keys(catalogue.detectors));
    byId("model").value = catalogue.default;
    this.#model = null;
    this.#choose(catalogue.default);
    if (draft) this.fill(JSON.parse(draft));
    for (const [control, value] of typed) control.value = value;
    this.#moved();
    if (this.#unsuited) this.suit(this.#unsuited);
    this.#unsuited = null;
  }

  /** Whether there are models: before, the controls have no meaning. */
  get isFilled() {
    return this.#model !== null;
  }

  /** The request. show(picture): what stands for a picture in it. picture: what it begins with, as Picture holds it. */
  body(picture, show = () => undefined) {
    const body = {};
    for (const control of named()) {
      if (control.closest("[hidden]")) continue;
      const value = control.name === "scheduler" ? chosenSampler() : valueOf(control);
      if (value !== undefined) put(body, control.name, value);
    }
    body.prompt ??= "";
    if (!byId("refiner-part").hidden && !byId("refiner").checked) body.refiner = false;
    for (const [kind, parts] of Object.entries(this.#parts)) {
      const shown = parts.chosen.map(({ image, mask, ...settings }) => ({
        ...settings, ...(image ? { image: show(image) } : {}), ...(mask ? { mask: show(mask) } : {}),
      }));
      if (shown.length) body[kind] = shown;
    }
    if (picture) body.image = show(picture);
    if (picture?.mask) body.mask = show({ name: "mask.png", url: picture.mask });
    return body;
  }

  /** The pictures that steer, in the order of their parts: {controlnets: [{image, mask, …}, …], references: […], …}. */
  get steering() {
    const { controlnets, references, regions } = this.#parts;
    return { controlnets: controlnets.chosen, references: references.chosen, regions: regions.chosen };
  }

  /**
   * Set everything as a request has it.
   *
   * Returns the labels of what can't be set here. What the request begins with is the caller's.
   */
  fill(request) {
    const lost = [];
    if (this.#models.has(request.model)) {
      byId("model").value = request.model;
      this.#choose(request.model);
    } else if (request.model) lost.push(`${labelOf("model")} ${request.model}`);
    const values = new Map(leaves(request));
    for (const control of named()) {
      const value = values.get(control.name) ?? this.#model.defaults[DEFAULTS[control.name]];
      values.delete(control.name);
      const set = control.name === "model" || (control.name === "scheduler" ? chooseSampler(value) : setValue(control, value));
      if (!set) lost.push(`${labelOf(control.name)} ${value}`.trim());
    }
    byId("refiner").checked = Boolean(request.refiner);
    byId("hires").checked = Boolean(request.hires);
    for (const [kind, parts] of Object.entries(this.#parts)) {
      const rows = request[kind] ?? [];
      lost.push(...parts.fill(rows).map((name) => `${labelOf(kind)} ${name}`));
      for (const field of ["image", "mask"]) {
        if (rows.some((row) => row[field] instanceof StoredPicture)) lost.push(`${labelOf(kind)}: ${field === "mask" ? "its mask" : "its picture"}`);
      }
    }
    for (const path of values.keys()) if (!ELSEWHERE.includes(path)) lost.push(labelOf(path));
    this.clear();
    this.#moved();
    return lost;
  }

  /** Draw at this size. */
  size({ width, height }) {
    byId("width").value = width;
    byId("height").value = height;
    this.touched("width", "height");
    this.#moved();
  }

  /** Draw at the size that suits an image of so many pixels. */
  suit({ width, height }) {
    if (this.isFilled) this.size(sizeFor(width, height, this.#model));
    else this.#unsuited = { width, height };
  }

  /** Whether there is an image to begin with, and a mask. strength: that the service would take itself; null keeps it. */
  begin(picture, masked, strength) {
    this.#begun = { picture, masked };
    if (!picture) this.#unsuited = null;
    if (strength !== null) byId("strength").value = strength;
    this.touched("image", "mask");
    this.#moved();
  }

  /** Show what the service refused: beside its field, or below the button. True where it has a field here. */
  refuse({ field: name, message }) {
    this.clear();
    const field = name && this.#place(name);
    const words = worded(message, name);
    if (!field) {
      byId("problem").textContent = words;
      return false;
    }
    const control = field.querySelector("textarea, input:not([aria-hidden]), select");
    const told = element("p", { className: "error told", id: `problem-${name.replaceAll(".", "-")}` }, words);
    field.append(told);
    field.classList.add("wrong");
    field.closest("details")?.setAttribute("open", "");
    control?.setAttribute("aria-invalid", "true");
    control?.setAttribute("aria-describedby", [control.getAttribute("aria-describedby"), told.id].filter(Boolean).join(" "));
    control?.focus();
    return true;
  }

  /** Take back what `refuse` has shown. */
  clear() {
    byId("problem").textContent = "";
    for (const field of document.querySelectorAll("#settings .wrong")) this.#unmark(field);
  }

  /** These fields were set by other means than their controls: what was wrong with them before is over. */
  touched(...fields) {
    for (const field of fields) this.#unmark(this.#place(field));
  }

  #place(name) {
    const fields = [...document.querySelectorAll("#settings [data-field]")];
    const found = (one) => fields.find((field) => field.dataset.field === one && !field.closest("[hidden]"));
    return found(name) ?? found(name.split(".")[0]);
  }

  #unmark(field) {
    if (!field?.classList.contains("wrong")) return;
    field.classList.remove("wrong");
    for (const told of field.querySelectorAll(".told")) told.remove();
    for (const control of field.querySelectorAll("[aria-invalid]")) {
      control.removeAttribute("aria-invalid");
      const others = (control.getAttribute("aria-describedby") ?? "").split(" ").filter((id) => id && !id.startsWith("problem-"));
      if (others.length) control.setAttribute("aria-describedby", others.join(" "));
      else control.removeAttribute("aria-describedby");
    }
  }

  #choose(name) {
    const before = this.#model;
    const model = this.#models.get(name);
    this.#model = model;
    byId("model-about").textContent = [model.description, model.licence].filter(Boolean).join(" · ");
    byId("model-draws").textContent = model.draws;
    byId("examples").replaceChildren(...model.examples.map((prompt) => this.#example(prompt)));
    const { limits, defaults } = model;
    for (const [id, range] of [["width", limits.width], ["height", limits.height]]) bound(byId(id), range);
    for (const [id, range] of [["steps", limits.steps], ["guidance", limits.guidance_scale]]) {
      bound(byId(id), range);
      bound(byId(id).previousElementSibling, range);
    }
    byId("clip-skip").max = limits.max_clip_skip;
    byId("guidance-rescale").placeholder = defaults.guidance_rescale;
    for (const field of Object.keys(DEFAULTS)) {
      const value = defaults[DEFAULTS[field]];
      const chosen = field === "scheduler" ? chosenSampler() : byId("settings").elements[field].value;
      // what was left as the model before had it follows; what somebody has chosen stays
      if (before && chosen !== String(before.defaults[DEFAULTS[field]])) continue;
      if (field === "scheduler") chooseSampler(value);
      else byId("settings").elements[field].value = value;
    }
    if (model.refiner && before?.refiner?.model !== model.refiner.model) {
      byId("refiner").checked = true;
      byId("switch-at").value = model.refiner.switch_at;
    }
    byId("shapes").replaceChildren(...shapes(model).map((shape) => this.#shape(shape)));
    this.#moved();
  }

  #example(prompt) {
    return element("button", { type: "button", on: { click: () => {
      byId("prompt").value = prompt;
      byId("prompt").focus();
      this.touched("prompt");
      this.#moved();
    } } }, prompt);
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

  // what makes sense together: the rest is hidden, and so not sent
  #showWhatApplies() {
    const { picture, masked } = this.#begun;
    const enlarged = picture && named().some((control) => control.name.startsWith("outpaint.") && Number(control.value));
    const hires = !picture && byId("hires").checked;
    byId("hires-part").hidden = picture;
    byId("hires-settings").hidden = !hires;
    byId("refiner-part").hidden = !this.#model?.refiner || hires;
    byId("refiner-settings").hidden = !byId("refiner").checked;
    byId("inpaint").hidden = !masked && !enlarged;
    byId("only-masked").closest("label").hidden = enlarged;
    byId("size-part").hidden = enlarged;
    byId("base-weight-part").hidden = this.#parts.regions.chosen.length === 0;
    for (const id of ["prompt-2", "negative-prompt-2"]) byId(id).closest(".field").hidden = !this.#model?.family.startsWith("sdxl");
  }

  #moved() {
    this.#showWhatApplies();
    for (const slider of document.querySelectorAll(".slider > input[type=range]")) slider.value = slider.nextElementSibling.value;
    const size = `${byId("width").value}x${byId("height").value}`;
    for (const shape of byId("shapes").children) shape.setAttribute("aria-pressed", String(shape.dataset.size === size));
    // pictures go with the page, and what they steer with them
    if (this.#model) {
      const body = this.body(null);
      const regions = body.regions?.filter(({ box }) => box);
      sessionStorage.setItem(DRAFT, JSON.stringify({ ...body, controlnets: [], references: [], regions }));
    }
    this.#changed();
  }
}

const isTyped = ({ type, value, defaultValue }) => type !== "checkbox" && defaultValue !== undefined && value !== defaultValue;

function valueOf(control) {
  if (control.type === "checkbox") return control.checked || undefined;
  const text = control.inputMode ? control.value.trim() : control.value;
  if (text === "") return undefined;
  // what is no number goes as it is, and comes back with the service's own words
  const value = control.inputMode ? Number(text) : text;
  return typeof value === "string" || (Number.isFinite(value) && Math.abs(value) <= Number.MAX_SAFE_INTEGER) ? value : text;
}

// false where the control can't have this value: a choice that isn't offered, a number that the browser doesn't hold, an
// empty text where the control's emptiness says something else
function setValue(control, value) {
  if (control.type === "checkbox") control.checked = value ?? control.defaultChecked;
  else if (control.tagName === "SELECT") {
    const options = [...control.options];
    const first = options.find((option) => option.defaultSelected) ?? options[0];
    control.value = options.some((option) => option.value === value) ? value : first.value;
    return value === undefined || control.value === value;
  } else {
    const held = typeof value !== "number" || Math.abs(value) <= Number.MAX_SAFE_INTEGER;
    control.value = held ? (value ?? control.defaultValue) : "";
    return held && value !== "";
  }
  return true;
}

function put(body, path, value) {
  const parts = path.split(".");
  const last = parts.pop();
  let place = body;
  for (const part of parts) place = place[part] ??= {};
  place[last] = value;
}

function bound(control, { min, max }) {
  control.min = min;
  control.max = max;
}
