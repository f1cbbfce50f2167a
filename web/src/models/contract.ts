/** How pixels become a model's input: the contract of the manifest, as `coe/models/inputs.py` keeps to it. */
import { BundleError } from '../cascade/errors';
import type { Pixels } from '../cascade/types';
import { resized } from './resize';

export interface Contract {
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
}

/** @throws BundleError it is none, or one that a page cannot keep to */
export function readContract(value: unknown, where: string): Contract {
  const told = value as Partial<Contract> | null;
  const fits =
    told?.size?.length === 2 &&
    told.size.every((side) => Number.isInteger(side) && side > 0) &&
    (told.channels === 1 || told.channels === 3) &&
    (told.layout === 'NCHW' || told.layout === 'NHWC') &&
    (told.dtype === 'float32' || told.dtype === 'uint8') &&
    typeof told.scale === 'number' &&
    isPerChannel(told.mean, told.channels) &&
    isPerChannel(told.std, told.channels) &&
    (told.fit === 'stretch' || told.fit === 'crop');
  if (!fits) throw new BundleError(`${where}: expected an image contract, got ${JSON.stringify(value)}`);
  return told as Contract;
}

/** Shape of one example as the model takes it, behind the batch's 1. */
export function modelShape({ size: [height, width], channels, layout }: Contract): number[] {
  return layout === 'NCHW' ? [1, channels, height, width] : [1, height, width, channels];
}

/** One example as the model takes it. */
export function prepare(pixels: Pixels, contract: Contract): Float32Array | Uint8Array {
  const [height, width] = contract.size;
  const { channels } = contract;
  const isFitting = pixels.width === width && pixels.height === height;
  const { data } = isFitting ? pixels : resized(pixels, width, height, contract.fit);
  const isFloat = contract.dtype === 'float32';
  const ready = isFloat ? new Float32Array(data.length) : new Uint8Array(data.length);
  const area = width * height;
  for (let channel = 0; channel < channels; channel++) {
    const [gain, offset] = factors(contract, channel);
    for (let at = 0; at < area; at++) {
      const byte = data[at * channels + channel] ?? 0;
      const value = isFloat ? Math.fround(Math.fround(byte * gain) + offset) : byte;
      ready[contract.layout === 'NCHW' ? channel * area + at : at * channels + channel] = value;
    }
  }
  return ready;
}

/** Contracts that prepare alike share what they prepared. */
export function contractKey(contract: Contract): string {
  const { size, channels, layout, dtype, scale, mean, std, fit } = contract;
  return JSON.stringify([size, channels, layout, dtype, scale, mean, std, fit]);
}

function factors({ scale, mean, std }: Contract, channel: number): [gain: number, offset: number] {
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
