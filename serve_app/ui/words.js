// Numbers and states, as people say them.

import { leaves, requestOf } from "./job_request.js";
import { labelOf } from "./labels.js";
import { readable } from "./samplers.js";

/** Seconds: "2 s", "1 min 20 s", "2 h 5 min". */
export function duration(seconds) {
  const whole = Math.max(1, Math.ceil(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return whole % 60 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${whole / 60} min`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** How a job stands, in a line. */
export function standing(job) {
  const eta = job.progress.eta_seconds;
  const left = eta ? `, ${duration(eta)} left` : "";
  switch (job.status) {
    case "queued":
      return job.position > 1 ? `${ordinal(job.position)} in the queue${left}` : `Next in the queue${left}`;
    case "running":
      return `${Math.floor(job.progress.fraction * 100)} %${left}`;
    case "complete": {
      const took = job.timings.total_s;
      return typeof took === "number" ? `Done in ${took < 10 ? took.toFixed(1) : Math.round(took)} s` : "Done";
    }
    case "cancelled":
      return "Cancelled";
    case "blocked":
      return "Withheld as unsafe";
    default:
      return `Failed: ${job.error?.message ?? "unknown error"}`;
  }
}

/** What the safety layers said of an image: a word for its badge, and a sentence. */
export function safety(nsfw) {
  const score = nsfw.score === null ? "" : ` (score ${nsfw.score.toFixed(2)})`;
  if (nsfw.score === null && !nsfw.flagged) return { word: "unchecked", told: "This image was not checked" };
  if (!nsfw.flagged) return { word: "safe", told: `No unsafe content found${score}` };
  const layers = nsfw.flagged_by.map((layer) => layer.replaceAll("_", " ")).join(" and ") || "the service";
  const done = { blocked: "withheld", blurred: "blurred" }[nsfw.action] ?? "unsafe";
  const acted = { blocked: "Withheld", blurred: "Blurred" }[nsfw.action] ?? "Shown, but marked";
  return { word: done, told: `${acted} as unsafe by the ${layers}${score}` };
}

/** What a job is called: its prompt, if it has one. */
export function titleOf({ request }) {
  if (request.operation === "upscale") return `Enlarged ${times(request)} by ${request.upscaler}`;
  return request.prompt || "Without a prompt";
}

/** The name under which an image is saved. */
export function fileName(job, image) {
  const ending = image.format === "jpeg" ? "jpg" : image.format;
  return `darkroom-${image.seed ?? `enlarged-${job.job_id.slice(-6)}`}.${ending}`;
}

const times = ({ width, source_width: before }) => `${Math.round((100 * width) / before) / 100} times`;

/** A job's settings: names and values, as they are shown. */
export function settingsOf(resolved) {
  if (resolved.operation === "upscale") {
    const { upscaler, source_width: width, source_height: height } = resolved;
    return [["Upscaler", upscaler], ["Before", `${width} × ${height}`], ["Size", `${resolved.width} × ${resolved.height}`]];
  }
  const request = requestOf(resolved);
  return leaves(request).flatMap(([path, value]) => {
    if (NOT_SHOWN.has(path)) return [];
    if (path === "scheduler" || path === "hires.sampler") return [[labelOf(path), readable(value)]];
    if (path === "image") return [[labelOf(path), request.mask || request.outpaint ? "Painted into an image" : "From an image"]];
    if (Array.isArray(value)) return value.map((part) => [labelOf(path), `${part.name ?? part.model ?? part.detector ?? part.prompt} ${part.weight ?? part.scale ?? part.strength}`]);
    return [[labelOf(path), value === true ? "yes" : value === false ? "no" : `${value}`]];
  });
}

// what a card shows anyway, or what makes no difference to see
const NOT_SHOWN = new Set(["prompt", "mask", "preview", "priority", "timeout_s", "safety", "output_format"]);

function ordinal(number) {
  const tens = number % 100;
  const ending = tens > 10 && tens < 14 ? "th" : (["th", "st", "nd", "rd"][number % 10] ?? "th");
  return `${number}${ending}`;
}
