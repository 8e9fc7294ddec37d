// From what a job was resolved to, back to a request that draws the same: the one mapping between the two. Pure.

// values of a job that are none of its request's
const NEUTRAL = {
  s_churn: 0, s_tmin: 0, s_noise: 1, variation_strength: 0, noise_width: 0, noise_height: 0, noise_seed_delta: 0, fit: "stretch",
  tiling: false, reproducible: false,
};

const saying = (fields) =>
  Object.fromEntries(Object.entries(fields).filter(([field, value]) => value !== null && value !== NEUTRAL[field]));

/** A picture that only the service had: `sha256` is of its file. */
export class StoredPicture {
  constructor(sha256) {
    this.sha256 = sha256;
  }
}

/**
 * The request of a job, in the fields of POST /generate; its pictures are StoredPictures.
 *
 * What has the same name in both passes through. A webhook's address isn't among a job's data.
 */
export function requestOf(resolved) {
  const { sampler, refiner, switch_at, guidance_start, guidance_end, image, hires, controlnets, references, regions, base_weight, details, freeu_s1: s1, freeu_s2: s2, freeu_b1: b1, freeu_b2: b2, ...same } =
    resolved;
  const request = saying(same);
  request.scheduler = sampler;
  request.refiner = refiner === null ? false : { switch_at };
  if (request.guidance_scale <= 1) delete request.guidance_rescale;
  else if (guidance_start > 0 || guidance_end < 1) request.guidance_interval = { start: guidance_start, end: guidance_end };
  if ([s1, s2, b1, b2].some((factor) => factor !== 1)) request.freeu = { s1, s2, b1, b2 };
  for (const text of ["prompt", "negative_prompt"]) if (request[text] === "") delete request[text];
  if (!request.variation_strength) delete request.variation_seed;
  if (hires) {
    const { loras: _, ...second } = hires;
    request.hires = { ...saying(second), steps: secondPassSteps(hires) };
  }
  if (details?.length) request.details = details.map(({ loras: _, ...detail }) => saying(detail));
  // the others are named by the first pass's prompt alone; another model's LoRAs are those of its own prompt
  for (const { loras, model } of [...(hires ? [hires] : []), ...(details ?? [])]) {
    if (loras && !model) request.loras = request.loras.filter((lora) => loras.some((other) => isSame(lora, other)));
  }
  const steers = ({ sha256, mask_sha256: mask, patches: _patches, channels: _channels, ...settings }) => ({
    ...settings,
    ...(sha256 === image?.sha256 ? {} : { image: new StoredPicture(sha256) }), // else it is shown what the image begins with
    ...(mask ? { mask: new StoredPicture(mask) } : {}),
  });
  request.controlnets = (controlnets ?? []).map(steers);
  request.references = (references ?? []).map(steers);
  if (regions?.length) {
    const where = (mask, box) => (mask ? { mask: new StoredPicture(mask) } : { box });
    request.regions = regions.map(({ mask_sha256: mask, box, ...rest }) => ({ ...rest, ...where(mask, box) }));
    request.base_weight = base_weight;
  }
  return image ? { ...request, ...beginning(image, request) } : request;
}

const isSame = (lora, other) => ["name", "weight", "text_weight"].every((field) => lora[field] === other[field]);

// an enlarged canvas has the size that follows
function beginning({ sha256, mask_sha256: mask, masked, strength, fit, outpaint, ...inpaint }, { width, height }) {
  return {
    image: new StoredPicture(sha256),
    strength,
    ...saying({ fit }),
    ...(mask ? { mask: new StoredPicture(mask) } : {}),
    ...(masked ? { inpaint } : {}),
    ...(outpaint
      ? { outpaint: { left: outpaint[0], top: outpaint[1], right: outpaint[2], bottom: outpaint[3] }, width: undefined, height: undefined }
      : { width, height }),
  };
}

// a job has the length of the second pass's schedule; a request the steps that are taken of it (samplers/registry.py)
function secondPassSteps({ sampler, steps, strength }) {
  return sampler.startsWith("webui_") ? Math.ceil(steps * Math.min(strength, 0.999) - 1e-6) : Math.floor(steps * strength);
}

/** What one image of a job was resolved to: it alone, with its own seeds. */
export function ofImage(resolved, { index, seed }) {
  const variation = resolved.variation_strength ? { variation_seed: resolved.variation_seed + index } : {};
  return { ...resolved, n: 1, seed, ...variation };
}

/** [path, value] of all that a request says, such as ["hires.scale", 2]; lists and pictures are values. */
export function leaves(request, before = "") {
  return Object.entries(request).flatMap(([field, value]) => {
    const whole = typeof value !== "object" || value === null || Array.isArray(value) || value.constructor !== Object;
    if (value === undefined) return [];
    return whole ? [[before + field, value]] : leaves(value, `${before}${field}.`);
  });
}
