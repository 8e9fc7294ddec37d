// The playground: puts its parts together. What each of them does is in its own module.

import { announce } from "./announce.js";
import { ApiBox } from "./api_box.js";
import { takeImages } from "./drop.js";
import { byId } from "./element.js";
import { Following, hasEnded } from "./following.js";
import { SettingsForm } from "./form.js";
import { Gallery } from "./gallery.js";
import { keyDialog } from "./key.js";
import { MaskEditor } from "./mask_editor.js";
import { Picture } from "./picture.js";
import { ask, cancel, catalogue, generate, job as jobNow, Refused } from "./service.js";
import { Viewer } from "./viewer.js";
import { duration, standing } from "./words.js";

// the jobs that this page has asked for, and the images that they began with, which the service doesn't give back
const asked = new Map();
const told = new Set();

const form = new SettingsForm(() => box.show());
const picture = new Picture((size) => {
  if (size) form.suit(size);
  form.strength(picture.held?.mask ? 1 : 0.8);
});
const editor = new MaskEditor();
const following = new Following(show, () => quietly(gallery.newest()));
const gallery = new Gallery({ reuse, begin, cancel: stop, open: (job, image) => viewer.open(job, image), renew }, see);
const viewer = new Viewer(() => gallery.images, begin);
const box = new ApiBox(() => {
  const held = picture.held;
  const files = held ? { image: held.name, ...(held.mask ? { mask: "mask.png" } : {}) } : {};
  return { body: { ...form.body(held), ...files }, files };
});

/** Show a job of which there is news. */
function show(job) {
  gallery.update(job);
  tell(job);
}

/** A job that the service has listed, or told of when it was asked; it may have ended by then. */
function see(job) {
  if (job.request.operation) return; // a picture made larger, which nobody asks for here
  if (hasEnded(job) || !following.hears(job.job_id)) gallery.update(job);
  following.see(job);
  tell(job);
}

/** Say once that a job has ended, if it was asked for here. */
function tell(job) {
  if (!asked.has(job.job_id) || !hasEnded(job) || told.has(job.job_id)) return;
  told.add(job.job_id);
  announce(`${standing(job)}: ${job.request.prompt}`);
}

let sending = 0;

async function send() {
  form.clear();
  const held = picture.held;
  const body = { ...form.body(held), preview: true };
  if (held) body.image = held.url;
  if (held?.mask) body.mask = held.mask;
  sending += 1;
  byId("generate").setAttribute("aria-busy", "true");
  try {
    const { job_id: id } = await generate(body);
    asked.set(id, held);
    announce("Accepted");
    see(await jobNow(id));
    gallery.bring(id);
  } catch (error) {
    const later = error.retryAfterS ? ` Try again in ${duration(error.retryAfterS)}.` : "";
    form.refuse({ field: error.field, message: `${error.message}${later}` });
  } finally {
    sending -= 1;
    byId("generate").setAttribute("aria-busy", String(sending > 0));
  }
}

async function stop(job) {
  try {
    const stopped = await cancel(job.job_id);
    see(stopped);
    announce(standing(stopped));
  } catch (error) {
    form.refuse({ message: error.message });
  }
}

function reuse(job) {
  form.fill(job.request);
  const held = asked.get(job.job_id) ?? null;
  picture.hold(held);
  if (job.request.image) {
    form.fill(job.request); // once more: an image brings a size and a strength of its own
    if (!held) byId("picture-problem").textContent = "This job began with an image that is no longer stored: add it again.";
  }
  byId("prompt").focus();
  announce("The settings are in the form");
}

async function begin(url, name) {
  try {
    const file = await (await ask(url)).blob();
    await picture.take(new File([file], name, { type: file.type }));
    byId("paint-mask").focus();
  } catch (error) {
    form.refuse({ message: error.message });
  }
}

async function renew(job) {
  await quietly(jobNow(job.job_id).then((known) => gallery.renew(known)));
}

/** What happens by itself may fail by itself: the next time may go well. */
async function quietly(work) {
  try {
    await work;
  } catch (error) {
    if (!(error instanceof Error)) throw error;
  }
}

async function load() {
  try {
    form.offer(await catalogue());
    await gallery.newest();
    form.clear();
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return; // the dialog asks for a key
    form.refuse({ message: error.message });
  }
}

byId("settings").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("paint-mask").addEventListener("click", () => {
  editor.open(picture.held, (strokes, mask) => picture.mask(mask ? strokes : [], mask));
});
takeImages((file) => picture.take(file));
keyDialog(() => {
  following.clear();
  asked.clear();
  told.clear();
  gallery.clear();
  load();
});

addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!event.repeat) byId("settings").requestSubmit();
  } else if (event.key === "Escape") {
    const newest = following.unfinished.filter((job) => asked.has(job.job_id)).at(-1);
    if (newest) stop(newest);
  } else if (event.key === "/" && !event.target.matches("input, textarea, select")) {
    event.preventDefault();
    byId("prompt").focus();
  }
});

load();
