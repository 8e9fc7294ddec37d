// The jobs that somebody likes, by id: kept in this browser.

const KEPT = "darkroom.favourites";

export class Favourites {
  #ids = new Set(JSON.parse(localStorage.getItem(KEPT) ?? "[]"));

  has(id) {
    return this.#ids.has(id);
  }

  /** Add it, or take it out; whether it is one now. */
  toggle(id) {
    if (!this.#ids.delete(id)) this.#ids.add(id);
    this.#keep();
    return this.has(id);
  }

  /** It is no more. */
  forget(id) {
    this.#ids.delete(id);
    this.#keep();
  }

  #keep() {
    localStorage.setItem(KEPT, JSON.stringify([...this.#ids]));
  }
}
