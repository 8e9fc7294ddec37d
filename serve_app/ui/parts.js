// Lists of a request: its LoRAs, ControlNets and reference pictures, each with numbers and pictures of its own.

import { byId, element } from "./element.js";
import { StoredPicture } from "./job_request.js";
import { readPicture } from "./picture.js";

const SCHEDULED = [["scale", "Strength", 1], ["start", "From", 0], ["end", "Until", 1]];

// of each kind: the field that names its model, its pictures, its settings with what they are at first (a list: choices;
// nothing: the service's own)
const KINDS = {
  loras: { label: "LoRA", key: "name", pictures: [], settings: [["weight", "Weight", 1], ["text_weight", "In text encoders"]] },
  controlnets: {
    label: "ControlNet", key: "model", pictures: [["image", "Picture"]],
    settings: [
      ...SCHEDULED, ["preprocessor", "Preprocessor", ["none", "canny", "lineart"]], ["fit", "Fit", ["stretch", "crop", "pad"]],
      ["low", "Canny low", 100], ["high", "Canny high", 200],
    ],
  },
  references: {
    label: "Reference", key: "model", pictures: [["image", "Picture"], ["mask", "Mask"]], settings: SCHEDULED, repeated: true,
  },
};

export class Parts {
  #kind;
  #known = [];
  #rows = [];
  #changed;
  #choice;
  #add;
  #list = element("ul", { className: "plain" });
  #node;

  /** kind: the request's field. changed(): called when anything is set in another way. */
  constructor(kind, changed) {
    this.#kind = KINDS[kind];
    this.#changed = changed;
    const { label, key } = this.#kind;
    this.#choice = element("select", { "aria-label": label });
    this.#add = element("button", { type: "button", className: "quiet", "aria-label": `Add this ${label}`, on: { click: () => {
      const name = this.#choice.value;
      if (this.#kind.repeated || !this.#rows.some((row) => row[key] === name)) this.#append({ [key]: name });
      this.#changed();
    } } }, "Add");
    this.#node = byId(`${kind}-part`);
    this.#node.dataset.label = label;
    this.#node.append(
      element("legend", {}, label), this.#list, element("div", { className: "row" }, this.#choice, this.#add),
    );
  }

  /** names: that a request may use; none hides the part. */
  offer(names) {
    this.#known = names;
    this.#choice.replaceChildren(...names.map((name) => new Option(name)));
    this.#node.hidden = names.length === 0;
    this.fill(this.#rows);
  }

  /** As the request has them; pictures as the page holds them. */
  get chosen() {
    return this.#rows.map((row) => ({ ...row }));
  }

  /** Set all of them. Returns the names that can't be. */
  fill(rows) {
    const { key } = this.#kind;
    const known = rows.filter((row) => this.#known.includes(row[key]));
    this.#rows = [];
    this.#list.replaceChildren();
    for (const row of known) this.#append(row);
    return rows.filter((row) => !known.includes(row)).map((row) => row[key]);
  }

  #append(values) {
    const { label, key, settings, pictures } = this.#kind;
    const row = { [key]: values[key] };
    const title = `${label} ${row[key]}`;
    const leave = element("button", { type: "button", className: "quiet", "aria-label": `Without ${row[key]}`, on: { click: () => {
      this.#rows.splice(this.#rows.indexOf(row), 1);
      node.remove();
      this.#changed();
      this.#add.focus();
    } } }, "✕");
    const node = element(
      "li", {},
      element("div", { className: "row" }, element("span", { className: "grow" }, row[key]), leave),
      ...pictures.map((field) => this.#picture(row, field, values[field[0]] ?? null, title)),
      element("div", { className: "grid" }, ...settings.map((field) => this.#setting(row, field, values[field[0]], title))),
    );
    this.#rows.push(row);
    this.#list.append(node);
  }

  #setting(row, [field, label, first], value, title) {
    const options = Array.isArray(first) ? first : null;
    row[field] = value ?? (options ? options[0] : first);
    const set = ({ target }) => {
      row[field] = options ? target.value : Number.isNaN(target.valueAsNumber) ? undefined : target.valueAsNumber;
      this.#changed();
    };
    const given = { "aria-label": `${label} of ${title}`, on: { input: set } };
    const control = options
      ? element("select", given, ...options.map((option) => new Option(option)))
      : element("input", { type: "number", step: "any", ...given });
    control.value = row[field] ?? "";
    return element("label", {}, label, control);
  }

  #picture(row, [field, label], value, title) {
    const shown = element("img", { alt: "", className: "thumb" });
    const told = element("span", { className: "grow hint" });
    const leave = element("button", { type: "button", className: "quiet", "aria-label": `Without the ${label.toLowerCase()} of ${title}`, on: {
      click: () => (hold(null), this.#changed()),
    } }, "✕");
    const none = field === "mask" ? "none: everywhere" : "what the image begins with";
    const hold = (picture) => {
      const lost = picture instanceof StoredPicture;
      row[field] = picture && !lost ? picture : undefined;
      told.textContent = lost ? "is no longer stored: choose it again" : (picture?.name ?? none);
      told.classList.toggle("error", lost);
      shown.hidden = leave.hidden = !row[field];
      if (row[field]) shown.src = picture.url;
    };
    const chooser = element("input", {
      type: "file", className: "unseen", accept: "image/png,image/jpeg,image/webp", "aria-label": `${label} of ${title}`,
      on: { change: async () => {
        try {
          hold(await readPicture(chooser.files[0]));
          this.#changed();
        } catch (error) {
          told.textContent = error.message;
          told.classList.add("error");
        }
      } },
    });
    hold(value);
    return element("div", { className: "row filed" }, element("label", { className: "button" }, label, chooser), shown, told, leave);
  }
}
