/** Runs in a Worker: the runtime and the models, so that the page itself never waits for them. */
import type { Pixels } from '../cascade/types';
import type { MemberSpec } from './bundle';
import { OnnxMember } from './member';
import { openRuntime, type Backend, type Runtime } from './runtime';

export type Request =
  | { readonly kind: 'open'; readonly backend: Backend }
  | { readonly kind: 'load'; readonly spec: MemberSpec; readonly model: Uint8Array; readonly nLabels: number }
  /** `pixels`: null where they are those of the request before. */
  | { readonly kind: 'predict'; readonly member: number; readonly pixels: Pixels | null }
  | { readonly kind: 'close' };

export interface Asked {
  readonly number: number;
  readonly request: Request;
}

export type Answered =
  { readonly number: number; readonly value: unknown } | { readonly number: number; readonly error: string };

const members: OnnxMember[] = [];
let runtime: Runtime | null = null;
let last: Pixels = { width: 0, height: 0, channels: 1, data: new Uint8Array() };

async function answer(request: Request): Promise<unknown> {
  if (request.kind === 'open') {
    runtime = await openRuntime(request.backend);
    return null;
  }
  if (request.kind === 'load') {
    if (!runtime) throw new Error('no runtime yet');
    const member = await OnnxMember.open(request.spec, request.model, request.nLabels, runtime);
    return { member: members.push(member) - 1, loadMs: member.loadMs };
  }
  if (request.kind === 'predict') {
    last = request.pixels ?? last;
    const member = members[request.member];
    if (!member) throw new Error('no such member');
    const started = performance.now();
    return { output: await member.predict(last), timeMs: performance.now() - started };
  }
  for (const member of members) await member.close();
  return null;
}

self.addEventListener('message', ({ data }: MessageEvent<Asked>) => {
  answer(data.request).then(
    (value) => {
      self.postMessage({ number: data.number, value } satisfies Answered);
    },
    (error: unknown) => {
      const told = error instanceof Error ? error.message : String(error);
      self.postMessage({ number: data.number, error: told } satisfies Answered);
    },
  );
});
