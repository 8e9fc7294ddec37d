// The words that the page has for a request's fields: each control's label, also in errors and in a job's settings.

import { readable } from "./samplers.js";

const words = (node) => node.textContent.trim().replace(/\s+/g, " ");

/** The label of a field's path, such as "inpaint.blur"; the path itself where the page has none. */
export function labelOf(path) {
  const control = document.querySelector(`#settings [name="${CSS.escape(path)}"]`);
  if (control) return control.dataset.label ?? words(control.labels[0]);
  const part = document.querySelector(`#settings [data-field="${CSS.escape(path)}"]`);
  return part?.dataset.label ?? path;
}

/** A message of the service with the page's words in place of its names of fields and samplers. field: what it is about, or null. */
export function worded(message, field) {
  const named = field && message.startsWith(field) ? labelOf(field) + message.slice(field.length) : message;
  return named.replaceAll(/\b[a-z]+(?:[._][a-z0-9]+)+\b/g, (name) => readable(labelOf(name)));
}
