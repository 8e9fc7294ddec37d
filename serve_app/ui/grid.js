// The dialog in which a grid of pictures is asked for, and in which grids fill themselves.

import { announce } from "./announce.js";
import { axisOf, kinds } from "./axes.js";
import { byId, element } from "./element.js";
import { GridTable } from "./grid_table.js";
import { worded } from "./labels.js";
import { ask, cancelGrid, drawGrid, grid, grids, MOST_CELLS, Unreachable } from "./service.js";

const ENDS = new Set(["completed", "failed", "expired", "cancelled"]);
const UNENDED = new Set(["waiting", "queued", "running"]);
const AXES = ["columns", "rows"];
const POLL_MS = 1500;

export class GridDialog {
  #dialog = byId("grid");
  #table;
  #batch = null;
  #following = null;

  /** body(): the request that each picture is drawn by. open(jobId): shows a picture's job. */
  constructor(body, open) {
    this.#table = new GridTable(byId("grid-cells"), open);
    byId("grid-button").addEventListener("click", () => this.#open());
    byId("grid-close").addEventListener("click", () => this.#dialog.close());
    byId("grid-earlier").addEventListener("change", () => this.#follow(byId("grid-earlier").value));
    byId("grid-cancel").addEventListener("click", () => this.#tried(async () => this.#show(await cancelGrid(this.#batch.batch_id))));
    byId("grid-sheet").addEventListener("click", () => this.#tried(() => this.#save("sheet", "png")));
    byId("grid-zip").addEventListener("click", () => this.#tried(() => this.#save("images", "zip")));
    this.#dialog.addEventListener("close", () => (this.#following = null));
    byId("grid-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#tried(() => this.#draw(body()));
    });
  }

  /** loras: the names of GET /models. */
  offer(loras) {
    const [columns, rows] = AXES.map((axis) => byId(`grid-${axis}`));
    for (const select of [columns, rows]) select.replaceChildren(...kinds(loras).map(([name, label]) => new Option(label, name)));
    rows.prepend(new Option("nothing", ""));
    columns.value = "seed";
    rows.value = "";
    byId("grid-columns-values").value ||= "1-4";
  }

  async #open() {
    byId("grid-problem").textContent = "";
    this.#dialog.showModal();
    await this.#tried(async () => {
      await this.#list();
      const newest = byId("grid-earlier").value;
      if (newest) this.#follow(newest);
    });
  }

  async #list() {
    const { batches } = await grids();
    byId("grid-earlier").replaceChildren(
      ...batches.map(({ batch_id: id, name, created_at: at }) => new Option([name, new Date(at).toLocaleString()].filter(Boolean).join(", "), id)),
    );
    byId("grid-shown").hidden = !batches.length;
  }

  async #draw(request) {
    const axes = AXES.map((axis) => [byId(`grid-${axis}`).value, byId(`grid-${axis}-values`).value]);
    const asked = axes.filter(([kind]) => kind).map(([kind, text]) => axisOf(kind, text));
    const { batch_id: id } = await drawGrid({ request, axes: asked, name: (request.prompt ?? "").slice(0, 200) });
    announce("Accepted");
    await this.#list();
    this.#follow(id);
  }

  /** Show a batch, as it is until it has ended or another one is shown: cells are drawn in their order, page by page. */
  async #follow(id) {
    const mine = (this.#following = {});
    byId("grid-earlier").value = id;
    if (this.#batch?.batch_id !== id) byId("grid-standing").textContent = ""; // not the other one's
    let offset = 0;
    while (this.#following === mine) {
      let batch = null;
      try {
        batch = await grid(id, offset);
      } catch (error) {
        if (!(error instanceof Unreachable)) return this.#refuse(error);
        byId("grid-standing").textContent = "The connection to the service is lost.";
      }
      if (this.#following !== mine) return;
      if (batch) {
        this.#show(batch);
        const ended = ENDS.has(batch.status);
        if (offset + MOST_CELLS < batch.total && (ended || !batch.cells.some(({ status }) => UNENDED.has(status)))) {
          offset += MOST_CELLS;
          continue;
        }
        if (ended) return;
      }
      await new Promise((wake) => setTimeout(wake, POLL_MS));
    }
  }

  #show(batch) {
    const before = this.#batch;
    this.#batch = batch;
    if (batch.cells) this.#table.show(batch);
    const ended = ENDS.has(batch.status);
    byId("grid-standing").textContent = standing(batch, ended);
    byId("grid-cancel").hidden = ended;
    if (ended && before?.batch_id === batch.batch_id && !ENDS.has(before.status)) announce(`The grid has ended: ${standing(batch, ended)}`);
  }

  async #save(part, ending) {
    const { batch_id: id } = this.#batch;
    const url = URL.createObjectURL(await (await ask(`batches/${id}/${part}`)).blob());
    element("a", { href: url, download: `darkroom-${id.slice(-6)}.${ending}` }).click();
    setTimeout(() => URL.revokeObjectURL(url)); // the download has begun by then
  }

  async #tried(work) {
    byId("grid-problem").textContent = "";
    try {
      await work();
    } catch (error) {
      this.#refuse(error);
    }
  }

  #refuse(error) {
    byId("grid-problem").textContent = worded(error.message, error.field ?? null);
  }
}

function standing({ status, total, completed, failed }, ended) {
  const drawn = `${completed} of ${total} drawn${failed ? `, ${failed} not` : ""}`;
  return ended && status !== "completed" ? `${drawn}, ${status}` : drawn;
}
