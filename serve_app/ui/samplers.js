// A sampler and its schedule, each by its readable name.

import { byId, element } from "./element.js";

let known = [];

/** Offer the samplers of GET /models. */
export function offerSamplers(samplers) {
  known = samplers;
  const options = known.map(({ name, label }) => new Option(label, name));
  const own = known.findIndex(({ name }) => name.startsWith("webui_"));
  byId("sampler").replaceChildren(
    element("optgroup", { label: "diffusers" }, ...options.slice(0, own)),
    element("optgroup", { label: "AUTOMATIC1111" }, ...options.slice(own)),
  );
  const all = known.flatMap((sampler) => [
    new Option(sampler.label, sampler.name),
    ...Object.keys(sampler.schedules).map((schedule) => new Option(readable(`${sampler.name}_${schedule}`), `${sampler.name}_${schedule}`)),
  ]);
  byId("hires-sampler").replaceChildren(new Option("as the first pass", ""), ...all);
  byId("sampler").addEventListener("change", offerSchedules);
}

/** The canonical name of what is chosen. */
export function chosenSampler() {
  const schedule = byId("schedule").value;
  return byId("sampler").value + (schedule && `_${schedule}`);
}

/** Choose a canonical name. False where there is no such sampler. */
export function chooseSampler(name) {
  const parts = split(name);
  if (!parts) return false;
  byId("sampler").value = parts.sampler.name;
  offerSchedules();
  byId("schedule").value = parts.schedule;
  return true;
}

/** "DPM++ 2M Karras"; a name that isn't known as it is. */
export function readable(name) {
  const parts = split(name);
  return parts ? [parts.sampler.label, parts.sampler.schedules[parts.schedule]].filter(Boolean).join(" ") : name;
}

/** The canonical name of a sampler by that name or by its readable one; null where there is none. */
export function canonicalName(text) {
  if (split(text)) return text;
  const wanted = text.toLowerCase();
  for (const { name, schedules } of known) {
    const names = [name, ...Object.keys(schedules).map((schedule) => `${name}_${schedule}`)];
    const meant = names.find((one) => readable(one).toLowerCase() === wanted);
    if (meant) return meant;
  }
  return null;
}

function split(name) {
  for (const sampler of known) {
    if (name === sampler.name) return { sampler, schedule: "" };
    const schedule = name.startsWith(`${sampler.name}_`) ? name.slice(sampler.name.length + 1) : null;
    if (schedule in sampler.schedules) return { sampler, schedule };
  }
  return null;
}

function offerSchedules() {
  const schedules = known.find(({ name }) => name === byId("sampler").value)?.schedules ?? {};
  const before = byId("schedule").value;
  byId("schedule").replaceChildren(
    new Option("sampler's own", ""), ...Object.entries(schedules).map(([name, label]) => new Option(label, name)),
  );
  byId("schedule").value = before in schedules ? before : "";
}
