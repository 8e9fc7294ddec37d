// What a screen reader is told: changes, not every step.

import { byId } from "./element.js";

export function announce(text) {
  byId("said").textContent = text;
}
