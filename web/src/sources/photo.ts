/** A photo that is on the phone already, or taken with its camera app: the file as it is. */
import { nameOf, type Captured } from './source';

export async function fromFile(file: File): Promise<Captured> {
  return { id: nameOf('photo'), bytes: new Uint8Array(await file.arrayBuffer()) };
}
