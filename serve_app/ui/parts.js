// Lists of a request: its LoRAs, ControlNets, reference pictures, regions and details, each with numbers and pictures of its own.

import { byId, element } from "./element.js";
import { StoredPicture } from "./job_request.js";
import { readPicture } from "./picture.js";

const BEGUN = "what the image begins with";

const SCHEDULED = [["scale", "Strength", 1], ["start", "From", 0], ["end", "Until", 1]];

// of each kind: the field that names its model, its pictures (and what stands where there is none), its settings with what
// they are at first (a list: choices; nothing: the service's own), its texts; as the request has it, and as the rows have it
const KINDS = {
  loras: { label: "LoRA", key: "name", pictures: [], settings: [["weight", "Weight", 1], ["text_weight", "In text encoders"]] },
  controlnets: {
    label: "ControlNet", key: "model", pictures: [["image", "Picture", BEGUN]],
    settings: [
      ...SCHEDULED, ["preprocessor", "Preprocessor", ["none", "canny", "lineart"]], ["fit", "Fit", ["stretch", "crop", "pad"]],
      ["low", "Canny low", 100], ["high", "Canny high", 200],
    ],
  },
  references: {
    label: "Reference", key: "model", repeated: true, settings: SCHEDULED,
    pictures: [["image", "Picture", BEGUN], ["mask", "Mask", "none: everywhere"]],
  },
  regions: {
    label: "Region", texts: [["prompt", "Prompt"], ["loras", "LoRAs of its own: ink, chalk:0.8"]], pictures: [["mask", "Mask", "none: the rectangle"]],
    settings: [["x", "Left", 0], ["y", "Top", 0], ["width", "Width", 0.5], ["height", "Height", 1], ["weight", "Weight", 1]],
    asked: ({ x, y, width, height, mask, loras, ...rest }) => ({
      ...rest, ...(loras.trim() ? { loras: lorasOf(loras) } : {}), ...(mask ? { mask } : { box: { x, y, width, height } }),
    }),
    row: ({ box, loras = [], ...rest }) => ({ ...rest, ...box, loras: loras.map(loraText).join(", ") }),
  },
  details: {
    label: "Detail", key: "detector", repeated: true, pictures: [],
    texts: [["prompt", "Prompt, if it isn't the image's"], ["negative_prompt", "Negative prompt"], ["classes", "Only these: circle, star"], ["sampler", "Sampler"]],
    settings: [
      ["strength", "Strength", 0.4], ["confidence", "Confidence", 0.3], ["max_count", "At most", 4], ["padding", "Padding", 32], ["blur", "Blur", 4],
      ["dilation", "Grows by", 2], ["min_area", "Least area", 0], ["max_area", "Most area", 1], ["offset_x", "Moved right", 0], ["offset_y", "Moved down", 0],
      ["combine", "Drawn over", ["each", "all", "others"]], ["steps", "Steps"], ["guidance_scale", "Guidance"], ["width", "Width"], ["height", "Height"],
    ],
    asked: ({ classes, ...rest }) => ({ ...written(rest), ...(classes.trim() ? { classes: classes.split(",").map((name) => name.trim()) } : {}) }),
    row: ({ classes = [], ...rest }) => ({ ...rest, classes: classes.join(", ") }),
  },
};

// LoRAs as one writes them: name, name:weight or name:weight:weight in text encoders
const lorasOf = (text) => text.split(",").filter((one) => one.trim()).map((one) => {
  const [, name, weight, ofTexts] = one.trim().match(/^(.*?)(?::(-?[\d.]+))?(?::(-?[\d.]+))?$/);
  return { name, ...(weight ? { weight: Number(weight) } : {}), ...(ofTexts ? { text_weight: Number(ofTexts) } : {}) };
});
const loraText = ({ name, weight = 1, text_weight: ofTexts }) => [name, weight, ...(typeof ofTexts === "number" ? [ofTexts] : [])].join(":");

const written = (row) => Object.fromEntries(Object.entries(row).filter(([, value]) => value !== ""));

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
    this.#choice = element("select", { "aria-label": label, hidden: !key });
    this.#add = element("button", { type: "button", className: "quiet", "aria-label": `Add this ${label}`, on: { click: () => {
      const name = this.#choice.value;
      if (!key) this.#append({});
      else if (this.#kind.repeated || !this.#rows.some((row) => row[key] === name)) this.#append({ [key]: name });
      this.#changed();
    } } }, "Add");
    this.#node = byId(`${kind}-part`);
    this.#node.dataset.label = label;
    this.#node.prepend(
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
    const asked = this.#kind.asked ?? ((row) => ({ ...row }));
    return this.#rows.map(asked);
  }

  /** Set all of them. Returns the names that can't be. */
  fill(rows) {
    const { key, row: ofPart = (part) => part } = this.#kind;
    const known = rows.filter((row) => !key || this.#known.includes(row[key]));
    this.#rows = [];
    this.#list.replaceChildren();
    for (const row of known) this.#append(ofPart(row));
    return rows.filter((row) => !known.includes(row)).map((row) => row[key]);
  }

  #append(values) {
    const { label, key, texts = [], settings, pictures } = this.#kind;
    const row = key ? { [key]: values[key] } : {};
    const title = `${label} ${row[key] ?? this.#rows.length + 1}`;
    const leave = element("button", { type: "button", className: "quiet", "aria-label": `Without ${row[key] ?? title}`, on: { click: () => {
      this.#rows.splice(this.#rows.indexOf(row), 1);
      node.remove();
      this.#changed();
      this.#add.focus();
    } } }, "✕");
    const node = element(
      "li", {},
      element("div", { className: "row" }, element("span", { className: "grow" }, row[key] ?? title), leave),
      ...texts.map((field) => this.#text(row, field, values[field[0]], title)),
      ...pictures.map((field) => this.#picture(row, field, values[field[0]] ?? null, title)),
      element("div", { className: "grid" }, ...settings.map((field) => this.#setting(row, field, values[field[0]], title))),
    );
    this.#rows.push(row);
    this.#list.append(node);
  }

  #text(row, [field, label], value, title) {
    row[field] = value ?? "";
    const set = ({ target }) => {
      row[field] = target.value;
      this.#changed();
    };
    return element("textarea", { rows: 1, value: row[field], placeholder: label, "aria-label": `${label} of ${title}`, on: { input: set } });
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

  #picture(row, [field, label, none], value, title) {
    const shown = element("img", { alt: "", className: "thumb" });
    const told = element("span", { className: "grow hint" });
    const leave = element("button", { type: "button", className: "quiet", "aria-label": `Without the ${label.toLowerCase()} of ${title}`, on: {
      click: () => (hold(null), this.#changed()),
    } }, "✕");
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
