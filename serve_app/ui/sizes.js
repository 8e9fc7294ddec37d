// Sizes that a model draws: multiples of 8 within its limits.

const STEP = 8;

const SHAPES = [
  ["Square", 1],
  ["Portrait", 2 / 3],
  ["Tall", 9 / 16],
  ["Landscape", 3 / 2],
  ["Wide", 16 / 9],
];

/** Shapes of about the model's usual area: [{name, width, height}], none twice. */
export function shapes(model) {
  const { width, height } = model.defaults;
  const found = new Map();
  for (const [name, ratio] of SHAPES) {
    const tall = Math.sqrt((width * height) / ratio);
    const size = within(tall * ratio, tall, model.limits);
    const key = `${size.width}x${size.height}`;
    if (!found.has(key)) found.set(key, { name, ...size });
  }
  return [...found.values()];
}

/** The size for a picture of `width` x `height`: its own if the model draws it, else the nearest of its shape. */
export const sizeFor = (width, height, model) => within(width, height, model.limits);

function within(width, height, limits) {
  const most = limits.max_pixels ?? Infinity;
  let scale = Math.min(limits.width.max / width, limits.height.max / height, Math.sqrt(most / (width * height)), 1);
  scale = Math.max(scale, Math.min(limits.width.min / width, limits.height.min / height));
  const size = { width: side(width * scale, limits.width), height: side(height * scale, limits.height) };
  while (size.width * size.height > most) {
    const longer = size.width >= size.height ? "width" : "height";
    size[longer] -= STEP;
  }
  return size;
}

function side(length, range) {
  const least = Math.ceil(range.min / STEP) * STEP;
  const most = Math.floor(range.max / STEP) * STEP;
  return Math.min(most, Math.max(least, Math.round(length / STEP) * STEP));
}
