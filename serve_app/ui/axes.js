// What may change along the axes of a grid, and its values as somebody types them.

import { labelOf } from "./labels.js";
import { canonicalName } from "./samplers.js";

export const WORDS = "words";
const LORA = "lora:";
const MODELS = new Set(["model", "hires.model"]);
const SAMPLERS = new Set(["scheduler", "hires.sampler"]);
const NUMBERS = ["seed", "steps", "guidance_scale", "guidance_rescale", "strength", "clip_skip", "width", "height", "variation_strength", "hires.strength", "hires.scale"];

const VALUE = /\s*(?:"([^"]*)"\s*|([^",]*))(?:,|$)/y;
const RANGE = /^(\d+)\s*-\s*(\d+)$/;
const MOST = 1000;

/** What an axis may be of, as [name, label]. loras: the names of GET /models. */
export function kinds(loras) {
  return [
    [WORDS, "Words in the prompt"],
    ...[...NUMBERS.slice(0, 3), ...SAMPLERS, ...MODELS, ...NUMBERS.slice(3)].map((path) => [path, labelOf(path)]),
    ...loras.map((name) => [LORA + name, `LoRA ${name}: its weight`]),
  ];
}

/** An axis of POST /batches. Throws an Error that says what is wrong with the text. */
export function axisOf(kind, text) {
  const values = split(text);
  if (!values.length) throw new Error("An axis needs values, such as 1, 2, 3.");
  if (kind === WORDS) {
    if (values.length < 2) throw new Error("Words: first what stands in the prompt, then what stands there instead.");
    return { replace: values[0], values, label: values[0].slice(0, 64) };
  }
  if (kind.startsWith(LORA)) {
    const lora = kind.slice(LORA.length);
    return { lora, values: values.map(number), label: lora.slice(0, 64) };
  }
  const read = MODELS.has(kind) ? String : SAMPLERS.has(kind) ? sampler : number;
  return { field: kind, values: values.flatMap((value) => (read === number ? range(value) : [value])).map(read), label: labelOf(kind) };
}

/** Parts between commas; one in double quotes may have commas. */
function split(text) {
  const found = [];
  for (let start = 0; start < text.length; start = VALUE.lastIndex) {
    VALUE.lastIndex = start;
    const match = VALUE.exec(text);
    if (!match) throw new Error(`${text.slice(start).trim()}: quotes stand around a whole value.`);
    const [, quoted, plain] = match;
    const value = quoted ?? plain.trim();
    if (value || quoted !== undefined) found.push(value);
  }
  return found;
}

/** "2-5" as 2, 3, 4, 5. */
function range(text) {
  const [, first, last] = RANGE.exec(text)?.map(Number) ?? [];
  if (first === undefined) return [text];
  if (last < first || last - first >= MOST) throw new Error(`${text} is no range: from the least to the most, at most ${MOST} numbers.`);
  return Array.from({ length: last - first + 1 }, (_, index) => first + index);
}

function number(text) {
  const value = Number(text);
  if (text === "" || !Number.isFinite(value)) throw new Error(`“${text}” is no number.`);
  return value;
}

function sampler(text) {
  const name = canonicalName(text);
  if (!name) throw new Error(`“${text}” is no sampler: write its name as the list of samplers has it.`);
  return name;
}
