/** Reads what `tests/web/conformance.py` packs. */
export function bytes(base64: string): Uint8Array {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

export function floats(base64: string): Float32Array {
  return new Float32Array(bytes(base64).buffer);
}

/** One output for each member: whole eighths, or single precision. */
export function outputs(packed: string | number[][], nLabels: number): Float32Array[] {
  if (typeof packed !== 'string') return packed.map((row) => Float32Array.from(row, (eighths) => eighths / 8));
  const all = floats(packed);
  return Array.from({ length: all.length / nLabels }, (_, at) => all.slice(at * nLabels, (at + 1) * nLabels));
}
