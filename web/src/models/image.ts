/** Decodes a PNG or JPEG to pixels, once, as Pillow would have it on a Pi. */
import { InputError } from '../cascade/errors';
import type { Pixels } from '../cascade/types';
import type { InputSpec } from './input-spec';

const MAX_PIXELS = 50_000_000;

/**
 * Pixels of a PNG or JPEG, turned upright as its EXIF says; grey or RGB by `channels`. Colours are taken as the file
 * has them: no profile of the screen's is applied.
 *
 * @throws InputError not such an image, damaged, or too large
 */
export async function decodeImage(captured: Uint8Array, { channels, invert }: InputSpec): Promise<Pixels> {
  const type = mediaType(captured);
  if (type === null)
    throw new InputError(`expected a PNG or JPEG image, got ${captured.length} bytes of something else`);
  const options: ImageBitmapOptions = { colorSpaceConversion: 'none', premultiplyAlpha: 'none' };
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(new Blob([captured as BlobPart], { type }), options);
  } catch {
    throw new InputError(`expected a PNG or JPEG image, got ${captured.length} bytes that cannot be decoded`);
  }
  try {
    if (bitmap.width * bitmap.height > MAX_PIXELS) {
      throw new InputError(`expected at most ${MAX_PIXELS} pixels, got ${bitmap.width} x ${bitmap.height}`);
    }
    const pixels = readBitmap(bitmap, channels);
    return invert === 'when-light' && isLight(pixels) ? inverted(pixels) : pixels;
  } finally {
    bitmap.close();
  }
}

/** Whether the mean is above the middle: dark on light. As `coe/models/input_spec.py`. */
export function isLight({ data }: Pixels): boolean {
  let sum = 0;
  for (const value of data) sum += value;
  return 2 * sum > 255 * data.length;
}

export function inverted(pixels: Pixels): Pixels {
  return { ...pixels, data: pixels.data.map((value) => 255 - value) };
}

/** The pixels as a PNG of their own size, nothing lost. */
export async function pngOf(pixels: Pixels): Promise<Uint8Array> {
  const canvas = document.createElement('canvas');
  drawPixels(canvas, pixels);
  const blob = await new Promise<Blob | null>((resolve) => {
    canvas.toBlob(resolve, 'image/png');
  });
  if (!blob) throw new InputError('the browser writes no PNG');
  return new Uint8Array(await blob.arrayBuffer());
}

export function drawPixels(canvas: HTMLCanvasElement, { width, height, channels, data }: Pixels): void {
  const rgba = new Uint8ClampedArray(4 * width * height).fill(255);
  for (let at = 0; at < width * height; at++) {
    for (let colour = 0; colour < 3; colour++) rgba[4 * at + colour] = data[at * channels + (colour % channels)] ?? 0;
  }
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext('2d')?.putImageData(new ImageData(rgba, width, height), 0, 0);
}

/** What the first bytes say it is; null where it is neither PNG nor JPEG. */
export function mediaType(bytes: Uint8Array): 'image/png' | 'image/jpeg' | null {
  if (bytes[0] === 0x89 && bytes[1] === 0x50 && bytes[2] === 0x4e && bytes[3] === 0x47) return 'image/png';
  if (bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff) return 'image/jpeg';
  return null;
}

/** Pixels from a canvas's RGBA; grey by Pillow's integers, which leave a grey value as it is. */
export function fromRgba(rgba: Uint8ClampedArray, width: number, height: number, channels: 1 | 3): Pixels {
  const area = width * height;
  const data = new Uint8Array(area * channels);
  for (let at = 0; at < area; at++) {
    const [red, green, blue] = [rgba[4 * at] ?? 0, rgba[4 * at + 1] ?? 0, rgba[4 * at + 2] ?? 0];
    if (channels === 1) {
      data[at] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    } else {
      data[3 * at] = red;
      data[3 * at + 1] = green;
      data[3 * at + 2] = blue;
    }
  }
  return { width, height, channels, data };
}

function readBitmap(bitmap: ImageBitmap, channels: 1 | 3): Pixels {
  const { width, height } = bitmap;
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext('2d', { willReadFrequently: true, colorSpace: 'srgb' });
  if (!context) throw new InputError('this browser gives no canvas to read an image with');
  context.drawImage(bitmap, 0, 0);
  return fromRgba(context.getImageData(0, 0, width, height).data, width, height, channels);
}
