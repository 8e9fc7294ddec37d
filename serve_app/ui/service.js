// Calls to the service, with the key, and its errors as one kind of exception.

import { askForKey, hasKey, keyHeaders } from "./key.js";

const UNREADABLE = "unreadable";

// addresses are relative to the page, wherever the service is mounted
const address = (path) => new URL(path, document.baseURI);

/** What the service refused. field: of the request, where one is wrong. */
export class Refused extends Error {
  constructor(status, code, message, field, retryAfterS) {
    super(message);
    Object.assign(this, { status, code, field, retryAfterS });
  }
}

/** The service couldn't be asked. */
export class Unreachable extends Error {}

/** Whether the service can be reached: `up`, and an event "change" with each turn. */
export const connection = Object.assign(new EventTarget(), { up: true });

function reached(up) {
  if (connection.up === up) return;
  connection.up = up;
  connection.dispatchEvent(new Event("change"));
}

addEventListener("offline", () => reached(false));

/** A response, whatever its status; raises Unreachable. */
async function answered(path, options = {}) {
  try {
    return await fetch(address(path), { ...options, headers: { ...keyHeaders(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    reached(false);
    throw new Unreachable("The service can't be reached. Is it running?");
  }
}

/** A response; raises Refused and Unreachable. */
export async function ask(path, options = {}) {
  const response = await answered(path, options);
  if (response.ok) {
    reached(true);
    return response;
  }
  const refusal = await refused(response);
  reached(refusal.code !== UNREADABLE || refusal.status < 500); // a proxy's own words: the service is gone
  if (refusal.status === 401) askForKey(hasKey() ? "This key is invalid." : "");
  throw refusal;
}

/** A JSON answer. */
export const askJson = async (path, options) => (await ask(path, options)).json();

/** The models, with their states, for whoever may change them; refused for others. */
export const adminModels = () => askJson("admin/models");

/** Change some of a model. */
export const changeModel = (name, changes) => changed("PATCH", `admin/models/${encodeURIComponent(name)}`, changes);

/** Add a model; its first image is drawn before requests may name it. */
export const addModel = (fields) => changed("POST", "admin/models", fields);

/** Remove a model that was added at run time. */
export const removeModel = (name) => ask(`admin/models/${encodeURIComponent(name)}`, { method: "DELETE" });

/** Let another name mean a model. */
export const nameModel = (alias, model) => changed("PUT", `admin/aliases/${encodeURIComponent(alias)}`, { model });

/** Forget another name. */
export const unnameModel = (alias) => ask(`admin/aliases/${encodeURIComponent(alias)}`, { method: "DELETE" });

const changed = (method, path, body) =>
  askJson(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/** The state of each stage, also where it can't serve yet. */
export const ready = async () => (await answered("ready")).json();

/** The models, their defaults and limits. */
export const catalogue = () => askJson("models");

/** What an image's file says of itself. url: its data URL. */
export const pictureTexts = (url) =>
  askJson("sdapi/v1/png-info", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ image: url }) });

/** What an image's file says of how it was made, and whether that is to be believed. url: its data URL. */
export const verify = (url) =>
  askJson("verify", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ image: url }) });

/** A page of jobs, newest first. */
export const jobsPage = (limit, cursor) =>
  askJson(`jobs?limit=${limit}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);

/** A job as it is now. */
export const job = (id) => askJson(`result/${id}`);

/** Delete a job that has ended, and its images. */
export const forget = (id) => ask(`result/${id}`, { method: "DELETE" });

/** Cancel a job; the job afterwards. */
export const cancel = (id) => askJson(`jobs/${id}`, { method: "DELETE" });

/** The newest batches by a matrix. */
export const grids = () => askJson("batches?limit=100");

/** Most cells that a batch is shown with at once. */
export const MOST_CELLS = 1000;

/** A batch with its cells from `offset` on. */
export const grid = (id, offset) => askJson(`batches/${id}?limit=${MOST_CELLS}&offset=${offset}`);

/** Ask for a batch; not sent again by itself, for it might be two. */
export const drawGrid = (body) =>
  askJson("batches", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/** Cancel a batch; the batch afterwards. */
export const cancelGrid = (id) => askJson(`batches/${id}`, { method: "DELETE" });

/** Ask for images; the accepted job. */
export const generate = (body) => accepted("generate", body);

/** Ask for a larger picture; the accepted job. */
export const upscale = (body) => accepted("upscale", body);

// sent again once where nobody knows whether it arrived: it stays one job
async function accepted(path, body) {
  const name = Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(16)).join("-");
  const options = {
    method: "POST",
    headers: { "Content-Type": "application/json", "Idempotency-Key": name },
    body: JSON.stringify(body),
  };
  try {
    return await askJson(path, options);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    return askJson(path, options);
  }
}

/** What happens by itself may fail by itself: the next time may go well. */
export async function quietly(work) {
  try {
    await work;
  } catch (error) {
    if (!(error instanceof Error)) throw error;
  }
}

async function refused(response) {
  const retryAfterS = Number(response.headers.get("Retry-After")) || null;
  try {
    const { error } = await response.json();
    return new Refused(response.status, error.code, error.message, error.field ?? null, retryAfterS);
  } catch {
    return new Refused(response.status, UNREADABLE, `The service answered with status ${response.status}.`, null, retryAfterS);
  }
}
