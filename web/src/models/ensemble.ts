/** The members as the page has them: each one runs in a Worker, which loads the runtime and the models. */
import { BundleError } from '../cascade/errors';
import type { Member } from '../cascade/tier';
import type { Pixels } from '../cascade/types';
import { fetchModel, type MemberSpec } from './bundle';
import type { Backend } from './runtime';
import type { Answered, Request } from './worker';

const N_TIMES = 200;
/** A module that is valid only where WebAssembly has SIMD, which the runtime needs. */
const SIMD = [
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
];

/** Why this browser cannot run models; "": it can. */
export function missingHere(): string {
  const hasWasm = 'WebAssembly' in globalThis && WebAssembly.validate(Uint8Array.from(SIMD));
  return hasWasm && 'Worker' in globalThis
    ? ''
    : 'This browser is too old for the models: they need WebAssembly with SIMD.';
}

export class WorkerMember implements Member {
  readonly name: string;
  /** Milliseconds of the latest predictions, in the Worker. */
  readonly timesMs: number[] = [];

  constructor(
    readonly spec: MemberSpec,
    readonly loadMs: number,
    private readonly ask: (pixels: Pixels) => Promise<{ output: Float32Array; timeMs: number }>,
  ) {
    this.name = spec.name.replace(/\.onnx$/, '');
  }

  async predict(pixels: Pixels): Promise<Float32Array> {
    const { output, timeMs } = await this.ask(pixels);
    this.timesMs.push(timeMs);
    if (this.timesMs.length > N_TIMES) this.timesMs.shift();
    return output;
  }
}

export class Ensemble {
  private readonly worker = new Worker(new URL('./worker.ts', import.meta.url), { type: 'module', name: 'models' });
  private readonly open = new Map<number, { resolve: (value: never) => void; reject: (error: Error) => void }>();
  private nAsked = 0;
  private sent: Pixels | null = null;

  private constructor(readonly backend: Backend) {
    this.worker.addEventListener('message', ({ data }: MessageEvent<Answered>) => {
      const asked = this.open.get(data.number);
      this.open.delete(data.number);
      if ('error' in data) asked?.reject(new BundleError(data.error));
      else asked?.resolve(data.value as never);
    });
    this.worker.addEventListener('error', (event) => {
      event.preventDefault();
      for (const { reject } of this.open.values()) {
        reject(
          new BundleError(`The models cannot run in this browser: ${event.message || 'their Worker does not start'}`),
        );
      }
      this.open.clear();
    });
  }

  /**
   * The members of every local tier, in order.
   *
   * @param onProgress called with how many of how many steps are done
   * @throws BundleError a model is not what it should be
   */
  static async open(
    specs: readonly MemberSpec[],
    nLabels: number,
    backend: Backend,
    headers: Record<string, string>,
    onProgress: (done: number, of: number) => void = () => undefined,
  ): Promise<{ ensemble: Ensemble; members: WorkerMember[] }> {
    const ensemble = new Ensemble(backend);
    let nDone = 0;
    const of = 2 * specs.length + 1; // the runtime; each model fetched, and each loaded
    const step = <T>(value: T): T => {
      nDone += 1;
      onProgress(nDone, of);
      return value;
    };
    onProgress(0, of);
    try {
      const models = specs.map((spec) => fetchModel(spec, headers).then(step));
      const [, ...fetched] = await Promise.all([ensemble.ask({ kind: 'open', backend }).then(step), ...models]);
      const members: WorkerMember[] = [];
      for (const [at, spec] of specs.entries()) members.push(step(await ensemble.load(spec, fetched[at], nLabels)));
      return { ensemble, members };
    } catch (error) {
      ensemble.worker.terminate();
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.ask({ kind: 'close' });
    this.worker.terminate();
  }

  private async load(spec: MemberSpec, model: Uint8Array = new Uint8Array(), nLabels = 0): Promise<WorkerMember> {
    const { member, loadMs } = await this.ask<{ member: number; loadMs: number }>(
      { kind: 'load', spec, model, nLabels },
      [model.buffer as ArrayBuffer],
    );
    return new WorkerMember(spec, loadMs, (pixels) => {
      const isKnown = this.sent === pixels;
      this.sent = pixels;
      return this.ask({ kind: 'predict', member, pixels: isKnown ? null : pixels });
    });
  }

  private ask<T>(request: Request, moved: Transferable[] = []): Promise<T> {
    this.nAsked += 1;
    const number = this.nAsked;
    return new Promise<T>((resolve, reject) => {
      this.open.set(number, { resolve, reject });
      this.worker.postMessage({ number, request }, moved);
    });
  }
}
