// An element of the page. Texts become text, never markup.

/**
 * @param {string} name
 * @param {Record<string, unknown>} given properties; "data-…", "aria-…" and "role" as attributes, "on" as {event: listener}
 * @param {...(Node | string | null)} children nulls are left out
 */
export function element(name, given = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (key === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (key === "role" || key.startsWith("data-") || key.startsWith("aria-")) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** The element of an id, which the page has. */
export const byId = (id) => document.getElementById(id);

/** Whether a button has something to do. It keeps the focus, and with it the keys, where it has not. */
export const able = (id, does) => byId(id).setAttribute("aria-disabled", String(!does));
