// The playground: puts its parts together. What each of them does is in its own module.

import { announce } from "./announce.js";
import { FileName } from "./api_call.js";
import { ApiBox } from "./api_box.js";
import { takeImages } from "./drop.js";
import { byId } from "./element.js";
import { EnlargeDialog } from "./enlarge.js";
import { Following, hasEnded } from "./following.js";
import { SettingsForm } from "./form.js";
import { Gallery } from "./gallery.js";
import { GridDialog } from "./grid.js";
import { ofImage, requestOf } from "./job_request.js";
import { keyDialog } from "./key.js";
import { labelOf } from "./labels.js";
import { MaskEditor } from "./mask_editor.js";
import { KnownPictures } from "./known_pictures.js";
import { ModelsDialog } from "./models_dialog.js";
import { Picture } from "./picture.js";
import { PictureSettings } from "./picture_settings.js";
import { Prompts } from "./prompts.js";
import { Queue } from "./queue.js";
import { ask, cancel, catalogue, connection, generate, job as jobNow, quietly, Refused } from "./service.js";
import { VerifyDialog } from "./verify.js";
import { Viewer } from "./viewer.js";
import { duration, fileName, standing, titleOf } from "./words.js";

// how many variations are drawn, and how far they are from the image
const VARIATIONS = 4;
const VARIATION = 0.2;

// the jobs that this page has asked for, those whose end it has told, and the pictures that it has sent
const asked = new Set();
const told = new Set();
const pictures = new KnownPictures();

// what a repeated job began with is to be added again: the settings are that job's already
let awaited = false;

const form = new SettingsForm(() => box.show());
const picture = new Picture((size) => {
  const { held } = picture;
  const kept = awaited && held;
  if (size && !kept) form.suit(size);
  form.begin(Boolean(held), Boolean(held?.mask), kept ? null : held?.mask ? 1 : 0.8);
  if (size) awaited = false;
  quietly(pictureSettings.look(held));
});
const pictureSettings = new PictureSettings(restore);
const editor = new MaskEditor();
const following = new Following(show, () => quietly(gallery.newest()));
const gallery = new Gallery({ reuse, begin, cancel: stop, open: (job, image) => viewer.open(job, image), renew }, see);
const viewer = new Viewer(() => gallery.images, {
  begin: (job, image) => begin(image.url, fileName(job, image)),
  enlarge: (_, { url }) => enlarging.open(url),
  sameSeed: (job, image) => restore(requestOf(ofImage(job.request, image)), job.request),
  vary,
  verify: (job, image) => verifying.openWith(image.url, fileName(job, image)),
});
const enlarging = new EnlargeDialog(({ job_id: id }) => quietly(taken(id)));
const verifying = new VerifyDialog();
new ModelsDialog(() => quietly(catalogue().then((known) => form.offer(known))));
const drawing = new GridDialog(() => form.body(picture.held, ({ url }) => url), look);
const queue = new Queue(stop);
const prompts = new Prompts();
const box = new ApiBox(() => form.body(picture.held, ({ name }) => new FileName(name)));

/** Show a job of which there is news. */
function show(job) {
  gallery.update(job);
  tell(job);
  queue.show(following.unfinished);
}

/** A job that the service has listed, or told of when it was asked; it may have ended by then. */
function see(job) {
  if (hasEnded(job) || !following.hears(job.job_id)) gallery.update(job);
  following.see(job);
  tell(job);
  queue.show(following.unfinished);
}

/** Say once that a job has ended, if it was asked for here. */
function tell(job) {
  if (!asked.has(job.job_id) || !hasEnded(job) || told.has(job.job_id)) return;
  told.add(job.job_id);
  announce(`${standing(job)}: ${titleOf(job)}`);
}

/** Show a job that was asked for here, as it is now. */
async function taken(id) {
  asked.add(id);
  announce("Accepted");
  const job = await jobNow(id);
  see(job);
  gallery.bring(id);
  return job;
}

let sending = 0;

async function send() {
  if (!form.isFilled) await load(); // which says what is in its way
  if (!form.isFilled) return;
  form.clear();
  byId("lost").textContent = "";
  const sent = { image: picture.held, ...form.steering };
  const body = { ...form.body(sent.image, ({ url }) => url), preview: true };
  sending += 1;
  byId("generate").setAttribute("aria-busy", "true");
  try {
    const { job_id: id } = await generate(body);
    prompts.remember(body);
    pictures.learn(sent, (await taken(id)).request);
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
  restore(requestOf(job.request), job.request);
}

/** Draw images like one, unless something of it can't be restored. */
async function vary(job, image) {
  const [seed] = crypto.getRandomValues(new Uint32Array(1));
  const like = { ...ofImage(job.request, image), n: VARIATIONS, variation_seed: seed, variation_strength: VARIATION };
  if (restore(requestOf(like), job.request)) await send();
}

/**
 * Put settings into the form. Returns whether they are whole.
 *
 * resolved: what is known of the request's pictures. warnings: what it leaves out already.
 */
function restore(request, resolved, warnings = []) {
  const held = pictures.begun(resolved);
  picture.hold(held);
  const lost = form.fill(pictures.fillIn(request));
  form.begin(Boolean(held), Boolean(held?.mask), null);
  awaited = Boolean(resolved.image) && !held;
  if (resolved.image?.mask_sha256 && !held?.mask) lost.push(labelOf("mask"));
  if (awaited) {
    lost.push(labelOf("image"));
    byId("picture-problem").textContent = "These settings began with an image that is no longer stored: add it again.";
  }
  const said = [lost.length ? `Not restored: ${lost.join(", ")}.` : "", ...warnings].filter(Boolean).join(" ");
  byId("lost").textContent = said;
  byId("prompt").focus();
  announce(`The settings are in the form. ${said}`);
  return said === "";
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

/** Open the first picture of a job. */
async function look(id) {
  await quietly(jobNow(id).then((known) => viewer.open(known, known.images[0])));
}

async function renew(job) {
  await quietly(jobNow(job.job_id).then((known) => gallery.renew(known)));
}

let loading = null;

/** Ask for the models and the newest jobs; whoever asks meanwhile waits for the same answer. */
function load() {
  return (loading ??= fetchAll().finally(() => (loading = null)));
}

async function fetchAll() {
  try {
    const known = await catalogue();
    form.clear();
    form.offer(known);
    enlarging.offer(known.upscalers);
    drawing.offer(known.loras);
    await gallery.newest();
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
byId("enlarge-picture").addEventListener("click", () => enlarging.open(picture.held.url));
takeImages((file) => (verifying.isOpen ? verifying : picture).take(file));
keyDialog(() => {
  following.clear();
  asked.clear();
  told.clear();
  pictures.clear();
  prompts.clear();
  gallery.clear();
  queue.show([]);
  load();
});

connection.addEventListener("change", () => {
  gallery.connected(connection.up);
  announce(connection.up ? "The service answers again" : "The connection to the service is lost");
  if (connection.up) quietly(gallery.newest()); // a job may have ended meanwhile
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
