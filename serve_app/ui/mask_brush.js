// A mask as strokes of a round brush on a canvas as large as the image. Knows no buttons and no pointers.

// stripes of a dark and a light red: one of them is seen on any picture
const STRIPES = ["rgb(90 0 20)", "rgb(255 225 215)"];

// stripes across the longer side of an image, which is shown at any size
const STRIPES_ACROSS = 60;

export class MaskBrush {
  #canvas;
  #context;
  #strokes;
  #stroke = null;
  #paint;

  /** strokes: painted before, as `strokes` tells them; they are not changed. */
  constructor(canvas, width, height, strokes = []) {
    Object.assign(canvas, { width, height });
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.#paint = stripes(this.#context, Math.max(4, Math.round(Math.max(width, height) / STRIPES_ACROSS)));
    this.#strokes = [...strokes];
    this.#redraw();
  }

  /** [{points: [[x, y], …], size, erases}], in the image's pixels, oldest first. */
  get strokes() {
    return [...this.#strokes];
  }

  /** Begin a stroke at a point with a dab. size: the brush's diameter. */
  begin(x, y, size, erases) {
    this.#stroke = { points: [[x, y]], size, erases };
    this.#strokes.push(this.#stroke);
    this.#draw(this.#stroke);
  }

  /** Go on to a point, where a stroke has begun. */
  extend(x, y) {
    if (!this.#stroke) return;
    const from = this.#stroke.points.at(-1);
    this.#stroke.points.push([x, y]);
    this.#draw({ ...this.#stroke, points: [from, [x, y]] });
  }

  /** The stroke is over. */
  end() {
    this.#stroke = null;
  }

  /** Take the newest stroke back. */
  undo() {
    this.end();
    this.#strokes.pop();
    this.#redraw();
  }

  /** Take all of them back. */
  clear() {
    this.end();
    this.#strokes = [];
    this.#redraw();
  }

  /** The mask as a PNG's data URL: white is painted anew, black is kept. null where nothing is white. */
  toPng() {
    const { width, height } = this.#canvas;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillRect(0, 0, width, height);
    for (const stroke of this.#strokes) draw(context, stroke, stroke.erases ? "black" : "white");
    const { data } = context.getImageData(0, 0, width, height);
    for (let at = 0; at < data.length; at += 4) if (data[at] > 127) return canvas.toDataURL("image/png");
    return null;
  }

  #redraw() {
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    for (const stroke of this.#strokes) this.#draw(stroke);
  }

  #draw(stroke) {
    this.#context.globalCompositeOperation = stroke.erases ? "destination-out" : "source-over";
    draw(this.#context, stroke, this.#paint);
  }
}

// diagonal ones, `width` pixels wide each along a row
function stripes(context, width) {
  const side = 2 * width;
  const tile = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const drawn = tile.getContext("2d");
  for (let y = 0; y < side; y += 1) {
    for (let x = 0; x < side; x += 1) {
      drawn.fillStyle = STRIPES[Math.floor((x + y) / width) % 2];
      drawn.fillRect(x, y, 1, 1);
    }
  }
  return context.createPattern(tile, "repeat");
}

function draw(context, { points, size }, colour) {
  Object.assign(context, { fillStyle: colour, strokeStyle: colour, lineWidth: size, lineCap: "round", lineJoin: "round" });
  context.beginPath();
  context.arc(...points[0], size / 2, 0, 2 * Math.PI); // a line of no length would leave no dab
  context.fill();
  context.beginPath();
  context.moveTo(...points[0]);
  for (const point of points.slice(1)) context.lineTo(...point);
  context.stroke();
}
