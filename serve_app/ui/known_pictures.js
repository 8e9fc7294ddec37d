// The pictures that this page has sent. The service tells their files' hashes, but doesn't give them back.

import { StoredPicture } from "./job_request.js";

export class KnownPictures {
  #known = new Map();

  /** sent: {image, controlnets, references, regions} of a request. resolved: what its job was resolved to. */
  learn({ image, controlnets, references, regions }, resolved) {
    if (image) {
      this.#known.set(resolved.image.sha256, image);
      if (image.mask) this.#known.set(resolved.image.mask_sha256, image);
    }
    const steering = [[controlnets, resolved.controlnets], [references, resolved.references], [regions, resolved.regions]];
    for (const [rows, inputs] of steering) {
      const drawn = rows.filter((row) => row.scale !== 0); // the others are no part of the job
      for (const [index, row] of drawn.entries()) {
        if (row.image) this.#known.set(inputs[index].sha256, row.image);
        if (row.mask) this.#known.set(inputs[index].mask_sha256, row.mask);
      }
    }
  }

  /** What a job began with, as Picture holds it; null where it isn't known. */
  begun({ image }) {
    const known = image && this.#known.get(image.sha256);
    if (!known) return null;
    const { strokes, mask } = (image.mask_sha256 && this.#known.get(image.mask_sha256)) || { strokes: [], mask: null };
    return { ...known, strokes, mask };
  }

  /** The request with pictures in place of the StoredPictures that are known. */
  fillIn(request) {
    const known = (value) => (value instanceof StoredPicture ? (this.#known.get(value.sha256) ?? value) : value);
    const parts = (rows = []) => rows.map((row) => Object.fromEntries(Object.entries(row).map(([field, value]) => [field, known(value)])));
    const { controlnets, references, regions } = request;
    return { ...request, controlnets: parts(controlnets), references: parts(references), regions: parts(regions) };
  }

  /** Forget them: whoever looks now may not be who sent them. */
  clear() {
    this.#known.clear();
  }
}
