/** How pixels become a model's input: the spec of the manifest, as `coe/models/input_spec.py` has it. */
import { BundleError } from '../cascade/errors';
import type { Pixels } from '../cascade/types';
import { resized } from './resize';

export interface InputSpec {
  /** [height, width] */
  readonly size: readonly [number, number];
  readonly channels: 1 | 3;
  readonly layout: 'NCHW' | 'NHWC';
  readonly dtype: 'float32' | 'uint8';
  /** (pixel * scale - mean) / std, per channel. */
  readonly scale: number;
  readonly mean: readonly number[];
  readonly std: readonly number[];
  /** An image of another size: stretch it, or crop its middle at the right aspect. */
  readonly fit: 'stretch' | 'crop';
  /** "when-light": an image whose mean is above the middle is inverted as it is decoded. */
  readonly invert?: 'never' | 'when-light';
}

/** @throws BundleError it is none, or one that a page cannot keep to */
export function readInputSpec(value: unknown, where: string): InputSpec {
  const given = value as Partial<InputSpec> | null;
  const fits =
    given?.size?.length === 2 &&
    given.size.every((side) => Number.isInteger(side) && side > 0) &&
    (given.channels === 1 || given.channels === 3) &&
    (given.layout === 'NCHW' || given.layout === 'NHWC') &&
    (given.dtype === 'float32' || given.dtype === 'uint8') &&
    typeof given.scale === 'number' &&
    isPerChannel(given.mean, given.channels) &&
    isPerChannel(given.std, given.channels) &&
    (given.fit === 'stretch' || given.fit === 'crop');
  if (!fits) throw new BundleError(`${where}: expected an image input, got ${JSON.stringify(value)}`);
  return given as InputSpec;
}

/** Shape of one example as the model takes it, behind the batch's 1. */
export function modelShape({ size: [height, width], channels, layout }: InputSpec): number[] {
  return layout === 'NCHW' ? [1, channels, height, width] : [1, height, width, channels];
}

/** One example as the model takes it. */
export function prepare(pixels: Pixels, spec: InputSpec): Float32Array | Uint8Array {
  const [height, width] = spec.size;
  const { channels } = spec;
  const isFitting = pixels.width === width && pixels.height === height;
  const { data } = isFitting ? pixels : resized(pixels, width, height, spec.fit);
  const isFloat = spec.dtype === 'float32';
  const ready = isFloat ? new Float32Array(data.length) : new Uint8Array(data.length);
  const area = width * height;
  for (let channel = 0; channel < channels; channel++) {
    const [gain, offset] = factors(spec, channel);
    for (let at = 0; at < area; at++) {
      const byte = data[at * channels + channel] ?? 0;
      const value = isFloat ? Math.fround(Math.fround(byte * gain) + offset) : byte;
      ready[spec.layout === 'NCHW' ? channel * area + at : at * channels + channel] = value;
    }
  }
  return ready;
}

/** Contracts that prepare alike share what they prepared. */
export function inputSpecKey(spec: InputSpec): string {
  const { size, channels, layout, dtype, scale, mean, std, fit } = spec;
  return JSON.stringify([size, channels, layout, dtype, scale, mean, std, fit]);
}

function factors({ scale, mean, std }: InputSpec, channel: number): [gain: number, offset: number] {
  const [m, s] = [mean[channel] ?? mean[0] ?? 0, std[channel] ?? std[0] ?? 1];
  return [Math.fround(scale / s), Math.fround(-m / s)];
}

function isPerChannel(values: unknown, channels: number): boolean {
  return (
    Array.isArray(values) &&
    (values.length === 1 || values.length === channels) &&
    values.every((value) => typeof value === 'number' && Number.isFinite(value))
  );
}
