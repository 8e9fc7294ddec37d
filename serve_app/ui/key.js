// The API key: kept in this browser, asked for where the service asks for one.

import { byId } from "./element.js";

const KEPT = "darkroom.key";

/** Headers that show the key; none without one. */
export function keyHeaders() {
  const key = localStorage.getItem(KEPT);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Whether there is one. */
export const hasKey = () => localStorage.getItem(KEPT) !== null;

/** Ask for a key; `problem` is what the service said of the last one. */
export function askForKey(problem = "") {
  byId("key-button").hidden = false;
  byId("key-problem").textContent = problem;
  const dialog = byId("key-dialog");
  if (!dialog.open) dialog.showModal();
}

/** changed: called after another key, or none, is kept. */
export function keyDialog(changed) {
  const dialog = byId("key-dialog");
  byId("key-button").hidden = !hasKey();
  byId("key-button").addEventListener("click", () => askForKey());
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = byId("key").value.trim();
    if (!/^[\x21-\x7e]+$/.test(key)) {
      byId("key-problem").textContent = "A key has letters, digits, - and _ only.";
      return;
    }
    localStorage.setItem(KEPT, key);
    byId("key").value = "";
    dialog.close();
    changed();
  });
  byId("key-forget").addEventListener("click", () => {
    localStorage.removeItem(KEPT);
    byId("key").value = "";
    dialog.close();
    changed();
  });
  byId("key-close").addEventListener("click", () => dialog.close());
}
