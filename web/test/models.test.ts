/** Pre-processing against `vectors/pixels.json`: what Pillow and NumPy make of the same images on a Pi. */
import { expect, test } from 'vitest';
import { BundleError } from '../src/cascade/errors';
import { readBundle } from '../src/models/bundle';
import { prepare, readInputSpec } from '../src/models/input-spec';
import { fromRgba, mediaType } from '../src/models/image';
import { softmax } from '../src/models/member';
import vectors from '../vectors/pixels.json';
import { bytes, floats } from './packed';

test('images of any size are prepared to the bit as on a Pi', () => {
  for (const [at, one] of vectors.prepared.entries()) {
    const spec = readInputSpec(one.input, 'input');
    const [height = 0, width = 0] = one.size;
    const ready = prepare({ width, height, channels: spec.channels, data: bytes(one.data) }, spec);
    expect(ready, `case ${at}`).toEqual(spec.dtype === 'uint8' ? bytes(one.ready) : floats(one.ready));
  }
});

test('colours become the same greys as on a Pi, and greys stay what they are', () => {
  const { colours, greys } = vectors.greys;
  const rgb = bytes(colours);
  const rgba = new Uint8ClampedArray((rgb.length / 3) * 4).fill(255);
  for (let at = 0; at < rgb.length / 3; at++) rgba.set(rgb.subarray(3 * at, 3 * at + 3), 4 * at);
  const width = rgb.length / 3;
  expect(fromRgba(rgba, width, 1, 1).data).toEqual(bytes(greys));
  expect(fromRgba(rgba, width, 1, 3).data).toEqual(rgb);
  expect(bytes(greys).slice(-256)).toEqual(Uint8Array.from({ length: 256 }, (_, value) => value));
});

test('logits become probabilities', () => {
  const found = softmax(Float32Array.from([1, 2, 1000]));
  expect(found[2]).toBeCloseTo(1, 6);
  expect(softmax(Float32Array.from([0, 0]))).toEqual(Float32Array.from([0.5, 0.5]));
});

test('a file is known by its first bytes, not by its name', () => {
  expect(mediaType(Uint8Array.from([0x89, 0x50, 0x4e, 0x47, 0x0d]))).toBe('image/png');
  expect(mediaType(Uint8Array.from([0xff, 0xd8, 0xff, 0xe0]))).toBe('image/jpeg');
  expect(mediaType(new TextEncoder().encode('<svg/>'))).toBeNull();
});

test('a cascade that a page cannot run is refused with what was expected', () => {
  expect(() => readBundle(null)).toThrow(BundleError);
  expect(() => readBundle({ labels: ['a'], tiers: [{}], fingerprint: 'f', input: { size: [1] } })).toThrow(
    /expected an image input/,
  );
  const [one] = vectors.prepared;
  const good = { labels: ['a', 'b'], fingerprint: 'f', input: one?.input };
  expect(() => readBundle({ ...good, tiers: [{ name: 'cloud' }] })).toThrow(/members or a model/);
  const member = { name: 'm', file: '../secret', input: one?.input };
  expect(() => readBundle({ ...good, tiers: [{ name: 'here', members: [member] }] })).toThrow(/file name/);
});
