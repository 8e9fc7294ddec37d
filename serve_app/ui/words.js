// Numbers and states, as people say them.

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

/** A resolved request's settings: names and values, as they are shown. */
export function settingsOf(request) {
  const shown = [
    ["Model", request.model],
    ["Size", `${request.width} × ${request.height}`],
    ["Steps", `${request.steps}`],
    ["Guidance", `${request.guidance_scale}`],
    ["Sampler", request.sampler],
    ["Seed", `${request.seed}`],
  ];
  if (request.n > 1) shown.push(["Images", `${request.n}`]);
  if (request.negative_prompt) shown.push(["Without", request.negative_prompt]);
  if (request.refiner) shown.push(["Refiner", `after ${Math.round(request.switch_at * 100)} %`]);
  for (const lora of request.loras ?? []) shown.push(["LoRA", `${lora.name} ${lora.weight}`]);
  if (request.image) shown.push([request.image.masked ? "Painted into an image" : "From an image", `strength ${request.image.strength}`]);
  return shown;
}

function ordinal(number) {
  const tens = number % 100;
  const ending = tens > 10 && tens < 14 ? "th" : (["th", "st", "nd", "rd"][number % 10] ?? "th");
  return `${number}${ending}`;
}
