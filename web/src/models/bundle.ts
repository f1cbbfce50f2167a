/** What the server hands out to a device: `cascade.json`, and the model files it names, checked by their sha256. */
import type { Calibrated } from '../cascade/calibrated';
import { BundleError, IdentityError } from '../cascade/errors';
import { readInputSpec, type InputSpec } from './input-spec';

export interface MemberSpec {
  readonly name: string;
  readonly file: string;
  readonly sha256: string;
  readonly n_bytes: number;
  readonly input: InputSpec;
  readonly output: 'probabilities' | 'logits';
}

export interface LocalTierSpec {
  readonly name: string;
  readonly agreement?: string;
  readonly confidence?: number;
  readonly calibrated?: Calibrated;
  readonly early: boolean;
  readonly members: readonly MemberSpec[];
}

export interface RemoteTierSpec {
  readonly name: string;
  readonly model: string;
  readonly deadline_ms: number;
  readonly calibrated?: Calibrated;
}

export type TierSpec = LocalTierSpec | RemoteTierSpec;

export interface Bundle {
  readonly version: string;
  readonly task: string;
  readonly labels: readonly string[];
  readonly fingerprint: string;
  readonly input: InputSpec;
  /** Pixels and fit of what is sent; null: the file as it was captured. */
  readonly send?: { readonly size: readonly [number, number]; readonly fit: 'stretch' | 'crop' } | null;
  /** File of an example picture, where the task has one. */
  readonly example?: string | null;
  readonly keep_last_answer: boolean;
  readonly tiers: readonly TierSpec[];
}

export interface Fetched {
  readonly bundle: Bundle;
  /** From the last visit, since the server could not be reached. */
  readonly isKept: boolean;
}

const KEPT = 'coe-device-models';
const PATIENCE_MS = 4000; // for the server to offer a new cascade, where an old one is kept

/** The latest word of the server, or the last one kept where it cannot be reached. */
export async function fetchBundle(headers: Record<string, string>): Promise<Fetched> {
  const kept = await openKept();
  const before = await kept?.match('cascade.json');
  try {
    const answer = await within(before ? PATIENCE_MS : Infinity, fetch('cascade.json', { headers, cache: 'no-cache' }));
    const text = await answer.text();
    const refusal = answer.ok ? null : refusalIn(text);
    if (refusal !== null && (answer.status === 401 || answer.status === 403)) {
      throw new IdentityError(
        'Authorization' in headers ? 'The server does not know this token.' : 'The server wants a token.',
      );
    }
    if (refusal !== null && answer.status === 404) throw new BundleError(`This page cannot run here: ${refusal}.`);
    if (!answer.ok) throw new TypeError(`the server answered ${answer.status}`);
    const bundle = readBundle(parsed(text));
    await keepIn(kept, 'cascade.json', text);
    return { bundle, isKept: false };
  } catch (error) {
    if (error instanceof IdentityError || error instanceof BundleError || !before) throw error;
    return { bundle: readBundle(await before.json()), isKept: true };
  }
}

/** A model's bytes: the kept ones, or from the server, and then kept. */
export async function fetchModel(spec: MemberSpec, headers: Record<string, string>): Promise<Uint8Array> {
  const kept = await openKept();
  const before = await kept?.match(spec.file);
  if (before) {
    const bytes = new Uint8Array(await before.arrayBuffer());
    if (await isGenuine(bytes, spec)) return bytes;
  }
  const answer = await fetch(spec.file, { headers });
  if (!answer.ok) throw new BundleError(`${spec.name}: the server answered ${answer.status}`);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  if (!(await isGenuine(bytes, spec))) {
    throw new BundleError(`${spec.name}: expected sha256 ${spec.sha256.slice(0, 16)}.., got other bytes (reload)`);
  }
  await keepIn(kept, spec.file, bytes as BodyInit);
  return bytes;
}

/** Let go of models that the cascade no longer names. */
export async function dropOthers(bundle: Bundle): Promise<void> {
  const kept = await openKept();
  const named = new Set(bundle.tiers.flatMap((tier) => ('members' in tier ? tier.members : [])).map((one) => one.file));
  for (const request of (await kept?.keys()) ?? []) {
    const isNamed = [...named, 'cascade.json'].some((file) => request.url.endsWith(`/${file}`));
    if (!isNamed) await kept?.delete(request);
  }
}

/** @throws BundleError it is none, or one that a page cannot run */
export function readBundle(value: unknown): Bundle {
  const given = value as Partial<Bundle> | null;
  if (!Array.isArray(given?.labels) || !Array.isArray(given.tiers) || given.tiers.length === 0 || !given.fingerprint) {
    throw new BundleError('cascade.json: expected labels, tiers and a fingerprint, got something else');
  }
  readInputSpec(given.input, 'input');
  for (const tier of given.tiers as Partial<LocalTierSpec & RemoteTierSpec>[]) {
    for (const member of tier.members ?? []) {
      readInputSpec(member.input, member.name);
      if (!/^models\/[0-9a-f]{64}\.onnx$/.test(member.file)) throw new BundleError(`${member.name}: no such file name`);
    }
    if (tier.members === undefined && typeof tier.model !== 'string') {
      throw new BundleError('cascade.json: expected members or a model in each tier, got a tier with neither');
    }
  }
  return given as Bundle;
}

async function isGenuine(bytes: Uint8Array, spec: MemberSpec): Promise<boolean> {
  if (!canCheck()) return bytes.length === spec.n_bytes;
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes as BufferSource));
  return [...digest].map((byte) => byte.toString(16).padStart(2, '0')).join('') === spec.sha256;
}

/** Whether checksums can be checked: browsers have neither digests nor kept files for pages over plain HTTP. */
export function canCheck(): boolean {
  return globalThis.isSecureContext && (crypto as { subtle?: unknown }).subtle !== undefined;
}

async function openKept(): Promise<Cache | null> {
  try {
    return 'caches' in globalThis ? await caches.open(KEPT) : null;
  } catch {
    return null; // blocked
  }
}

/** Keeping is for the next visit; where there is no room, this one goes on without. */
async function keepIn(kept: Cache | null, name: string, content: BodyInit): Promise<void> {
  try {
    await kept?.put(name, new Response(content));
  } catch (error) {
    console.info(`${name} is not kept:`, error);
  }
}

async function within<T>(limitMs: number, promise: Promise<T>): Promise<T> {
  if (limitMs === Infinity) return promise;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new TypeError('the server is slow'));
    }, limitMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new TypeError('it answered with something else than its cascade (a login page?)');
  }
}

/** As coe-cloud words it; null where somebody else refused. */
function refusalIn(text: string): string | null {
  try {
    const { error } = JSON.parse(text) as { error?: unknown };
    return typeof error === 'string' ? error : null;
  } catch {
    return null;
  }
}
