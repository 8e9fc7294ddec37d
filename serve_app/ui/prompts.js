// Prompts that were sent before, and styles: texts by name that are added to a prompt. Both are kept in this browser.

import { byId } from "./element.js";

const HISTORY = "darkroom.prompts";
const STYLES = "darkroom.styles";
const LONGEST = 50;

const kept = (key) => JSON.parse(localStorage.getItem(key) ?? "[]");
const keep = (key, list) => localStorage.setItem(key, JSON.stringify(list));

export class Prompts {
  #history = kept(HISTORY);
  #styles = kept(STYLES);

  constructor() {
    byId("use-earlier").addEventListener("click", () => {
      const earlier = this.#history[byId("earlier").value];
      if (earlier) write(earlier);
    });
    byId("add-style").addEventListener("click", () => {
      const style = this.#styles.find(({ name }) => name === byId("style").value);
      if (style) write({ prompt: styled("prompt", style.prompt), negative: styled("negative-prompt", style.negative) });
    });
    byId("drop-style").addEventListener("click", () => {
      this.#styles = this.#styles.filter(({ name }) => name !== byId("style").value);
      keep(STYLES, this.#styles);
      this.#show();
    });
    byId("keep-style").addEventListener("click", () => this.#keepStyle());
    byId("style-name").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
      event.preventDefault(); // it would send the form
      this.#keepStyle();
    });
    this.#show();
  }

  /** A prompt was sent. */
  remember({ prompt, negative_prompt: negative = "" }) {
    if (!prompt) return;
    const others = this.#history.filter((one) => one.prompt !== prompt || one.negative !== negative);
    this.#history = [{ prompt, negative }, ...others].slice(0, LONGEST);
    keep(HISTORY, this.#history);
    this.#show();
  }

  /** Forget what was sent: whoever looks now may not be who wrote it. */
  clear() {
    this.#history = [];
    keep(HISTORY, this.#history);
    this.#show();
  }

  #keepStyle() {
    const name = byId("style-name").value.trim();
    if (!name) {
      byId("style-name").focus();
      return;
    }
    const style = { name, prompt: byId("prompt").value, negative: byId("negative-prompt").value };
    this.#styles = [...this.#styles.filter((one) => one.name !== name), style];
    keep(STYLES, this.#styles);
    byId("style-name").value = "";
    this.#show();
    byId("style").value = name;
  }

  #show() {
    const earlier = this.#history.map(({ prompt }, index) => new Option(prompt, index));
    byId("earlier").replaceChildren(...(earlier.length ? earlier : [new Option("none yet", "")]));
    const styles = this.#styles.map(({ name }) => new Option(name));
    byId("style").replaceChildren(...(styles.length ? styles : [new Option("none yet", "")]));
  }
}

// as A1111 adds one: around "{prompt}" if it has that, else behind
function styled(id, style) {
  const text = byId(id).value.trim();
  if (style.includes("{prompt}")) return style.replaceAll("{prompt}", () => text);
  return [text, style.trim()].filter(Boolean).join(", ");
}

function write({ prompt, negative }) {
  for (const [id, text] of [["negative-prompt", negative], ["prompt", prompt]]) {
    byId(id).value = text;
    byId(id).dispatchEvent(new Event("input", { bubbles: true }));
  }
  byId("prompt").focus();
}
