// The dialog that says how an image was made: what its file says, and whether that is to be believed.

import { byId, element } from "./element.js";
import { dataUrl } from "./picture.js";
import { ask, verify } from "./service.js";

const STATES = {
  trusted: "Unchanged since it was signed, by somebody whom this service trusts",
  valid: "Unchanged since it was signed, by somebody unknown",
  invalid: "Not to be believed: it was changed since, or was never good",
  elsewhere: "At another address, which isn't asked",
};

const KINDS = {
  trainedAlgorithmicMedia: "generated",
  compositeWithTrainedAlgorithmicMedia: "generated, with a picture in it",
  algorithmicallyEnhanced: "a picture, enlarged",
};

const INGREDIENTS = { valid: "signed", invalid: "with credentials that are no good", unsigned: "unsigned" };

export class VerifyDialog {
  #dialog = byId("verify");
  #newest = 0;

  constructor() {
    byId("verify-button").addEventListener("click", () => this.open());
    byId("verify-close").addEventListener("click", () => this.#dialog.close());
    byId("verify-file").addEventListener("change", () => {
      const [file] = byId("verify-file").files;
      byId("verify-file").value = ""; // the same file may be chosen again
      if (file) this.take(file);
    });
  }

  get isOpen() {
    return this.#dialog.open;
  }

  open() {
    this.#show("", [], "");
    this.#dialog.showModal();
  }

  /** Ask about an image of this service. */
  async openWith(url, name) {
    this.open();
    await this.#ask(name, async () => (await ask(url)).blob());
  }

  /** Ask about a file. */
  take(file) {
    return this.#ask(file.name, async () => file);
  }

  async #ask(name, file) {
    const number = ++this.#newest;
    this.#show("", [], name);
    try {
      const found = await verify(await dataUrl(await file()));
      if (number === this.#newest) this.#show("", rowsOf(found), name);
    } catch (error) {
      if (number === this.#newest) this.#show(error.message, [], name);
    }
  }

  #show(problem, rows, name) {
    byId("verify-problem").textContent = problem;
    byId("verify-name").textContent = name;
    byId("verify-said").replaceChildren(
      ...rows.flatMap(([title, value]) => [element("dt", {}, title), element("dd", {}, value)]),
    );
  }
}

/** Names and values of what POST /verify says. */
function rowsOf({ credentials, digital_source_type: type, parameters, watermark, job }) {
  const rows = [];
  if (credentials) {
    rows.push(["Credentials", STATES[credentials.state]]);
    if (credentials.signature) rows.push(["Signed by", [credentials.signature.name, credentials.signature.time].filter(Boolean).join(", ")]);
    for (const { digital_source_type: kind, software } of credentials.actions) {
      if (kind) rows.push(["It is", [kindOf(kind), software && `by ${software}`].filter(Boolean).join(" ")]);
    }
    const { model } = credentials.generation ?? {};
    if (model) rows.push(["Model", model.name]);
    for (const { title, state } of credentials.ingredients) rows.push(["Made with", `${title}, ${INGREDIENTS[state]}`]);
    if (credentials.state === "invalid") rows.push(...credentials.problems.map(({ explanation }) => ["Problem", explanation]));
  } else {
    rows.push(["Credentials", "None. They are easily removed, so that proves nothing."]);
    if (type) rows.push(["It says, unsigned", kindOf(type)]);
  }
  if (watermark) rows.push(["Watermark", `of the service ${watermark.service_id}, image of the job …${watermark.job_end}`]);
  if (job) rows.push(["Job", job.job_id]);
  if (parameters) rows.push(["Parameters, unsigned", parameters]);
  return rows;
}

function kindOf(uri) {
  const name = uri.split("/").at(-1);
  return KINDS[name] ?? name;
}
