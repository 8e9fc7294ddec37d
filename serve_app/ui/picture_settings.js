// The settings in a picture's file: ours by its manifest, A1111's by its parameters, as far as they can be drawn here.

import { byId } from "./element.js";
import { requestOf } from "./job_request.js";
import { pictureTexts } from "./service.js";

export class PictureSettings {
  #button = byId("use-picture-settings");
  #looking = null;
  #found = null;

  /**
   * use(request, resolved, warnings): called with the settings when they are wanted. resolved: as of a job, as far as the
   * file tells; only its `image` is there where the file is A1111's.
   */
  constructor(use) {
    this.#button.addEventListener("click", () => use(...this.#found));
  }

  /** Offer what the file of a picture says, or nothing. held: as Picture has it; null without one. */
  async look(held) {
    if (held?.url === this.#looking) return;
    this.#looking = held?.url ?? null;
    this.#button.hidden = true;
    if (!held) return;
    const found = settingsIn(await pictureTexts(held.url));
    if (held.url !== this.#looking) return; // another one has come since
    this.#found = found;
    this.#button.hidden = found === null;
  }
}

/** [request, resolved, warnings] of what POST /sdapi/v1/png-info says of a file; null where there is nothing. */
function settingsIn({ items, parameters, request, warnings }) {
  const manifest = manifestIn(items);
  if (manifest) return [requestOf(manifest), manifest, []];
  if (!request || !parameters.Steps) return null; // a text of another kind
  const { "Denoising strength": strength, "Hires upscaler": hires } = parameters;
  const begun = strength !== undefined && hires === undefined; // A1111 tells it of both, and no picture
  return [begun ? { ...request, strength: Number(strength) } : request, { image: begun ? {} : null }, warnings];
}

// as of a job; null where there is none, as in a picture that was enlarged
function manifestIn({ darkroom: text }) {
  const { manifest_version: version, versions: _s, embeddings: _e, device: _d, dtype: _t, safety: _c, ...manifest } = read(text);
  if (version !== 1 || manifest.operation) return null;
  const { model, refiner, reproducibility, strength, image, hires, loras, controlnets, references, vae, details = [], ...same } = manifest;
  const steers = (records) => records.map(({ name, hash: _, ...rest }) => ({ model: name, ...rest }));
  const { upscaler_hash: _, model_hash: _of_model, ...second } = hires ?? {};
  return {
    ...same,
    model: model.name,
    refiner: refiner?.name ?? null,
    switch_at: refiner?.switch_at ?? null,
    reproducible: reproducibility !== "best-effort",
    image: image && { ...image, strength, masked: Boolean(image.mask_sha256 || image.outpaint) },
    hires: hires && second,
    loras: loras.map(({ hash: _h, ...lora }) => lora),
    controlnets: steers(controlnets),
    references: steers(references),
    vae: vae?.name ?? null,
    details: details.map(({ detector_hash: _d, parts: _p, ...detail }) => detail),
  };
}

function read(text) {
  try {
    return JSON.parse(text ?? "{}");
  } catch {
    return {}; // somebody else's text of that name
  }
}
