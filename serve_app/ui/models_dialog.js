// The dialog of the models: what each draws, whether it is in memory; for an admin whether it serves, its other names, and
// models that are added and removed.

import { announce } from "./announce.js";
import { byId, element } from "./element.js";
import { addModel, adminModels, catalogue, changeModel, nameModel, quietly, ready, Refused, removeModel, unnameModel } from "./service.js";

const STAGES = { sd15: "SD15", sd2: "SD15", sdxl: "SDXLBase", "sdxl-refiner": "SDXLRefiner" };
const GIB = 2 ** 30;
// while a model is coming or going
const POLL_MS = 1000;

export class ModelsDialog {
  #dialog = byId("models");
  #changed;
  #poll;
  #moving = false;
  // one thing at a time: a click waits for the change before it, and what is shown last is the newest
  #last = Promise.resolve();

  /** changed(): called when the models that serve aren't those that the form offers; its end is waited for. */
  constructor(changed) {
    this.#changed = changed;
    byId("models-button").addEventListener("click", () => this.#open());
    byId("models-close").addEventListener("click", () => this.#dialog.close());
    byId("alias-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const [name, model] = [byId("alias-name").value.trim(), byId("alias-model").value];
      this.#change(() => nameModel(name, model), `${name} is ${model} now`, () => (byId("alias-name").value = ""));
    });
    byId("model-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const [name, source, family] = ["model-name", "model-source", "model-family"].map((id) => byId(id).value.trim());
      const fields = { name, source, ...(family ? { family } : {}) };
      this.#change(() => addModel(fields), `${name} is being loaded`, () => byId("model-form").reset());
    });
  }

  #open() {
    this.#dialog.showModal();
    this.#try(() => this.#look());
  }

  async #look() {
    clearTimeout(this.#poll);
    try {
      await this.#show(...(await Promise.all([catalogue(), ready(), asAdmin()])));
    } finally {
      if (this.#moving) this.#poll = setTimeout(() => this.#inTurn(() => quietly(this.#look())), POLL_MS);
    }
  }

  #change(act, said, after = () => undefined) {
    this.#try(async () => {
      try {
        await act();
        after();
        announce(said);
      } finally {
        await this.#look(); // a switch whose change was refused stands as it stood
      }
    });
  }

  #try(work) {
    this.#inTurn(async () => {
      byId("models-problem").textContent = "";
      try {
        await work();
      } catch (error) {
        byId("models-problem").textContent = error.message;
      }
    });
  }

  #inTurn(work) {
    this.#last = this.#last.then(work);
  }

  async #show({ models: served }, { stages }, admin) {
    const known = admin?.models ?? served;
    const about = new Map(served.map((model) => [model.name, model]));
    byId("models-list").replaceChildren(...known.map((model) => this.#row({ ...about.get(model.name), ...model }, stages[STAGES[model.family]], admin)));
    byId("alias-form").hidden = byId("model-form").hidden = !admin;
    const chosen = byId("alias-model").value;
    byId("alias-model").replaceChildren(...known.map(({ name }) => new Option(name, name, false, name === chosen)));
    this.#moving = known.some(({ added }) => ["downloading", "adding", "removing"].includes(added?.state));
    const offered = Array.from(byId("model").options, ({ value }) => value);
    if (offered.join() !== served.map(({ name }) => name).join()) await this.#changed();
  }

  #row(model, stage, admin) {
    const { name, family, description, draws } = model;
    const aliases = (admin?.aliases ?? []).filter((alias) => alias.model === name);
    return element("li", {},
      element("p", {}, element("strong", {}, name), ` ${family}`),
      description || draws ? element("p", { className: "hint" }, [description, draws].filter(Boolean).join(" ")) : null,
      element("p", { className: "standing" }, standing(model, stage)),
      admin ? (model.added ? this.#added(model) : this.#serving(model)) : null,
      aliases.length ? element("p", { className: "chips" }, ...aliases.map((alias) => this.#alias(alias))) : null,
    );
  }

  /** A model that was added at run time; it has a switch while it is there. */
  #added(model) {
    const { name, unfinished, added } = model;
    const { state, problem, download } = added;
    if (state === "removing") return element("p", { className: "hint" }, `is being removed, ${unfinished} jobs to go`);
    const remove = element("button", { type: "button", className: "quiet", "aria-label": `Remove the model ${name}`, on: {
      click: () => this.#change(() => removeModel(name), `${name} is being removed`),
    } }, "Remove");
    if (state === "ready") return element("div", {}, this.#serving(model), remove);
    const waits = download ? `${Math.floor(100 * download.downloaded_bytes / download.bytes)} % of its files are downloaded ` : "its first image is being drawn ";
    return element("p", { className: "hint" }, state === "failed" ? `couldn't be added: ${problem} ` : waits, remove);
  }

  #serving({ name, serving, unfinished }) {
    const box = element("input", { type: "checkbox", role: "switch", checked: serving, on: {
      change: () => this.#change(() => changeModel(name, { serving: box.checked }), `${name} ${box.checked ? "serves" : "serves no more"}`),
    } });
    const drains = !serving && unfinished ? `, ${unfinished} jobs to go` : "";
    return element("label", { className: "switch" }, box, `${name} serves requests${drains}`);
  }

  #alias({ name, model, changed }) {
    if (!changed) return element("span", {}, name); // the configuration's
    return element("button", { type: "button", className: "quiet", "aria-label": `Forget the name ${name} of ${model}`, on: {
      click: () => this.#change(() => unnameModel(name), `${name} is forgotten`),
    } }, `${name} ✕`);
  }
}

/** How a model stands. stage: what GET /ready says of its deployment, undefined where it tells nothing. */
function standing({ name }, stage) {
  if (!stage) return "";
  const { state, reason, replica } = stage;
  if (!replica) return reason ? `${state}: ${reason}` : state;
  const isOfModel = (checkpoint) => checkpoint.split("@")[0] === name; // one that was added has a longer name there
  const weights = (replica.memory?.rows ?? []).filter((row) => isOfModel(row.checkpoint)).reduce((sum, row) => sum + row.weights, 0);
  const size = weights ? `, ${weights < GIB / 10 ? `${Math.ceil(weights / 2 ** 20)} MiB` : `${(weights / GIB).toFixed(1)} GiB`} of weights` : "";
  return `${state}, ${replica.checkpoints?.some(isOfModel) ? "in memory" : "not in memory"} (${replica.device})${size}`;
}

// null for whoever may change nothing
async function asAdmin() {
  try {
    return await adminModels();
  } catch (error) {
    if (error instanceof Refused && error.status === 403) return null;
    throw error;
  }
}
