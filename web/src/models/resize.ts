/**
 * Resizing as Pillow does it (bilinear, with its support scaled so that shrinking does not alias), to the bit: two
 * passes over bytes with fixed-point weights. `vectors/pixels.json` holds it to what Pillow gives. (Pillow before 13
 * always takes the passes in one order; a tall image may then differ by one level of 255.)
 */
import type { Pixels } from '../cascade/types';

const PRECISION_BITS = 22;
const HALF = 1 << (PRECISION_BITS - 1);

interface Weights {
  /** Of each output pixel: its first input pixel, how many there are, and their weights from `size * at` on. */
  readonly first: Int32Array;
  readonly count: Int32Array;
  readonly size: number;
  readonly weights: Int32Array;
}

/** The part of an image that is looked at, in pixels of it: left, top, right, bottom. */
type Box = readonly [number, number, number, number];

export function resized(pixels: Pixels, width: number, height: number, fit: 'stretch' | 'crop'): Pixels {
  const box = fit === 'crop' ? middle(pixels, width / height) : ([0, 0, pixels.width, pixels.height] as const);
  const [left, top, right, bottom] = box;
  const across = width !== pixels.width || left !== 0 || right !== width;
  const down = height !== pixels.height || top !== 0 || bottom !== height;
  const passes: ((image: Pixels) => Pixels)[] = [];
  if (across) passes.push((image) => acrossRows(image, weightsOf(pixels.width, left, right, width), width));
  if (down) passes.push((image) => downColumns(image, weightsOf(pixels.height, top, bottom, height), height));
  const lost = pixels.height - height; // rows; where that is much more than columns, they go first
  if (lost > 0 && lost > 2 * (pixels.width - width)) passes.reverse();
  return passes.reduce((image, pass) => pass(image), pixels);
}

/** The largest box of that aspect in the middle, as Pillow's ImageOps.fit has it (in single precision, as it is passed). */
function middle({ width, height }: Pixels, aspect: number): Box {
  const own = width / height;
  let [w, h] = [width, height];
  if (own > aspect) w = aspect * height;
  else if (own < aspect) h = width / aspect;
  const [left, top] = [(width - w) * 0.5, (height - h) * 0.5];
  return [Math.fround(left), Math.fround(top), Math.fround(left + w), Math.fround(top + h)];
}

function weightsOf(inSize: number, from: number, to: number, outSize: number): Weights {
  const scale = Math.fround(to - from) / outSize;
  const support = Math.max(scale, 1);
  const size = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(outSize);
  const count = new Int32Array(outSize);
  const weights = new Int32Array(outSize * size);
  const exact = new Float64Array(size);
  for (let at = 0; at < outSize; at++) {
    const centre = from + (at + 0.5) * scale;
    const low = Math.max(Math.trunc(centre - support + 0.5), 0);
    const high = Math.min(Math.trunc(centre + support + 0.5), inSize);
    let total = 0;
    for (let k = 0; k < high - low; k++) {
      const weight = Math.max(1 - Math.abs((k + low - centre + 0.5) * (1 / support)), 0);
      exact[k] = weight;
      total += weight;
    }
    for (let k = 0; k < high - low; k++) {
      const share = total === 0 ? (exact[k] ?? 0) : (exact[k] ?? 0) / total;
      weights[at * size + k] = Math.trunc(0.5 + share * (1 << PRECISION_BITS));
    }
    first[at] = low;
    count[at] = high - low;
  }
  return { first, count, size, weights };
}

function acrossRows({ width, height, channels, data }: Pixels, w: Weights, outWidth: number): Pixels {
  const out = new Uint8Array(outWidth * height * channels);
  for (let y = 0; y < height; y++) {
    const row = y * width * channels;
    for (let x = 0; x < outWidth; x++) {
      const [start, n, own] = [row + (w.first[x] ?? 0) * channels, w.count[x] ?? 0, x * w.size];
      for (let channel = 0; channel < channels; channel++) {
        let sum = HALF;
        for (let k = 0; k < n; k++) sum += (data[start + k * channels + channel] ?? 0) * (w.weights[own + k] ?? 0);
        out[(y * outWidth + x) * channels + channel] = clipped(sum);
      }
    }
  }
  return { width: outWidth, height, channels, data: out };
}

function downColumns({ width, channels, data }: Pixels, w: Weights, outHeight: number): Pixels {
  const stride = width * channels;
  const out = new Uint8Array(outHeight * stride);
  for (let y = 0; y < outHeight; y++) {
    const [start, n, own] = [(w.first[y] ?? 0) * stride, w.count[y] ?? 0, y * w.size];
    for (let at = 0; at < stride; at++) {
      let sum = HALF;
      for (let k = 0; k < n; k++) sum += (data[start + k * stride + at] ?? 0) * (w.weights[own + k] ?? 0);
      out[y * stride + at] = clipped(sum);
    }
  }
  return { width, height: outHeight, channels, data: out };
}

function clipped(sum: number): number {
  return Math.min(Math.max(sum >> PRECISION_BITS, 0), 255);
}
