// The pictures of a batch as a table that fills itself: the first axis across, the second down, a table each for the others.

import { element } from "./element.js";

const WORDS = { waiting: "waiting", queued: "next", running: "drawing …", blocked: "withheld", cancelled: "cancelled", deleted: "deleted" };

export class GridTable {
  #table;
  #open;
  #batch = null;
  #cells = new Map();

  /** table: the element. open(jobId): called with the job of a picture. */
  constructor(table, open) {
    this.#table = table;
    this.#open = open;
  }

  /** batch: of GET /batches/{id}. */
  show(batch) {
    if (this.#batch !== batch.batch_id) this.#lay(batch);
    for (const cell of batch.cells) {
      const place = this.#cells.get(cell.index);
      if (place.dataset.status === cell.status) continue;
      place.dataset.status = cell.status;
      place.replaceChildren(this.#content(cell, place.dataset.title));
    }
  }

  #lay({ batch_id: id, axes, total }) {
    this.#batch = id;
    this.#cells.clear();
    const [columns, rows = { name: "", values: [""] }, ...others] = axes;
    const perPage = columns.values.length * rows.values.length;
    const bodies = [];
    for (let page = 0; page * perPage < total; page += 1) {
      let left = page;
      const titles = others.map(({ name, values }) => {
        const title = `${name}: ${values[left % values.length]}`;
        left = Math.floor(left / values.length);
        return title;
      });
      const heads = columns.values.map((value) => element("th", { scope: "col" }, value));
      const lines = rows.values.map((row, y) => {
        const cells = columns.values.map((column, x) => {
          const title = [`${columns.name} ${column}`, rows.name && `${rows.name} ${row}`, ...titles].filter(Boolean).join(", ");
          const cell = element("td", { "data-title": title });
          this.#cells.set(page * perPage + y * columns.values.length + x, cell);
          return cell;
        });
        return element("tr", {}, element("th", { scope: "row" }, row), ...cells);
      });
      const axesNamed = element("td", { className: "hint" }, rows.name ? `${columns.name} → ${rows.name} ↓` : `${columns.name} →`);
      const caption = titles.length ? [element("tr", {}, element("th", { colSpan: columns.values.length + 1, scope: "colgroup" }, titles.join(", ")))] : [];
      bodies.push(element("tbody", {}, ...caption, element("tr", {}, axesNamed, ...heads), ...lines));
    }
    this.#table.replaceChildren(...bodies);
  }

  #content({ status, image_url: url, job_id: id, error }, title) {
    if (!url) return element("span", { className: "standing" }, WORDS[status] ?? error?.message ?? status);
    const picture = element("img", { src: url, alt: title, loading: "lazy" });
    return element("button", { type: "button", className: "cell", "aria-label": `Open ${title}`, on: { click: () => this.#open(id) } }, picture);
  }
}
