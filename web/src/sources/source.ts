/** Where examples come from: each source gives the bytes as captured, a PNG or a JPEG, as a camera on a Pi would. */

export interface Captured {
  readonly id: string;
  readonly bytes: Uint8Array;
}

let count = 0;

/** A name that no other example of this device has. */
export function nameOf(source: string, now = new Date()): string {
  count += 1;
  const stamp = now.toISOString().replace(/[-:]/g, '').replace('T', '-').slice(0, 15);
  const random = Math.floor(Math.random() * 2 ** 32);
  return `${source}-${stamp}-${count}-${random.toString(36)}`;
}

/** @throws Error the browser cannot write such a file */
export async function bytesOf(canvas: HTMLCanvasElement, type: string, quality?: number): Promise<Uint8Array> {
  const blob = await new Promise<Blob | null>((resolve) => {
    canvas.toBlob(resolve, type, quality);
  });
  if (!blob) throw new Error('the browser gives no image of what is shown');
  return new Uint8Array(await blob.arrayBuffer());
}
