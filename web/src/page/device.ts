/** This phone as a device of the cascade: its members loaded, its examples decided, what waits kept. */
import { calibrated } from '../cascade/calibrated';
import { Cascade } from '../cascade/cascade';
import { BundleError } from '../cascade/errors';
import { agreement, always, confidence, parseAgreement, type Rule } from '../cascade/rule';
import { LocalTier, type Tier } from '../cascade/tier';
import type { Decision, Pixels } from '../cascade/types';
import type { Bundle, LocalTierSpec } from '../models/bundle';
import { Ensemble, type WorkerMember } from '../models/ensemble';
import { decodeImage, pngOf } from '../models/image';
import { resized } from '../models/resize';
import type { Backend } from '../models/runtime';
import { question } from '../protocol/message';
import { RemoteTier } from '../protocol/remote';

export interface Decided {
  readonly decision: Decision;
  readonly latencyMs: number;
  readonly decodeMs: number;
  readonly captured: Uint8Array;
  /** What is sent of it, should it be. */
  readonly sent: Uint8Array;
  /** As the members saw it. */
  readonly seen: Pixels;
  /** Of a call that would have sent it. */
  readonly bytesIfSent: number;
  /** `Date.now()` */
  readonly at: number;
}

/** What a device is opened with. */
export interface Opened {
  readonly headers: () => Record<string, string>;
  /** Called with how many of how many steps are done. */
  readonly onProgress: (done: number, of: number) => void;
  /** The server does not know who asks. */
  readonly onIdentity: () => void;
}

export class Device {
  private constructor(
    readonly bundle: Bundle,
    private readonly ensemble: Ensemble,
    readonly cascade: Cascade,
    readonly members: readonly WorkerMember[],
    /** The cloud; null where the cascade has none. */
    readonly cloud: RemoteTier | null,
  ) {}

  get backend(): Backend {
    return this.ensemble.backend;
  }

  get nTiersHere(): number {
    return this.cascade.tiers.filter((tier) => tier !== this.cloud).length;
  }

  /** @throws BundleError a model is not what it should be */
  static async open(bundle: Bundle, backend: Backend, opened: Opened): Promise<Device> {
    const { headers, onIdentity, onProgress } = opened;
    const specs = bundle.tiers.flatMap((tier) => ('members' in tier ? tier.members : []));
    const nLabels = bundle.labels.length;
    const { ensemble, members } = await Ensemble.open(specs, nLabels, backend, headers(), onProgress);
    const left = [...members];
    let cloud: RemoteTier | null = null;
    const tiers = bundle.tiers.map((tier): Tier => {
      if ('members' in tier) return localTier(tier, left.splice(0, tier.members.length));
      cloud = new RemoteTier(tier.name, {
        model: tier.model,
        fingerprint: bundle.fingerprint,
        nLabels,
        deadlineMs: tier.deadline_ms,
        headers,
        onIdentity,
        ...(tier.calibrated ? { rule: calibrated(tier.calibrated) } : {}),
      });
      return cloud;
    });
    return new Device(bundle, ensemble, new Cascade(tiers, bundle.keep_last_answer), members, cloud);
  }

  /**
   * One example's answer.
   *
   * @param onDeferred called with the answer so far and what is going to be sent, before another tier is asked
   * @throws InputError it is no image
   */
  async decide(
    id: string,
    captured: Uint8Array,
    onDeferred?: (soFar: Decision, sent: Uint8Array) => unknown,
  ): Promise<Decided> {
    const started = performance.now();
    const pixels = await decodeImage(captured, this.bundle.input);
    const decodeMs = performance.now() - started;
    let small: Promise<Uint8Array> | null = null;
    const toSend = (): Promise<Uint8Array> => (small ??= this.reduced(captured, pixels));
    const example = { id, captured, toSend, pixels, deadline: Infinity };
    const decision = await this.cascade.decide(example, async (soFar) => onDeferred?.(soFar, await toSend()));
    const latencyMs = performance.now() - started;
    const sent = await toSend();
    const bytesIfSent = this.cloud?.bytesOf(question(id, sent).body.length) ?? 0;
    const { size, fit } = this.bundle.input;
    const seen = resized(pixels, size[1], size[0], fit);
    return { decision, latencyMs, decodeMs, captured, sent, seen, bytesIfSent, at: Date.now() };
  }

  /** No more of a picture than the largest model takes; one that is small already goes as it was captured. */
  private async reduced(captured: Uint8Array, pixels: Pixels): Promise<Uint8Array> {
    const { send } = this.bundle;
    if (!send) return captured;
    const [height, width] = send.size;
    if (pixels.width <= width && pixels.height <= height) return captured;
    return pngOf(resized(pixels, width, height, send.fit));
  }

  /** What every member says of an example, whatever the vote. */
  async outputs(captured: Uint8Array): Promise<Float32Array[]> {
    const pixels = await decodeImage(captured, this.bundle.input);
    const outputs: Float32Array[] = [];
    for (const member of this.members) outputs.push(await member.predict(pixels));
    return outputs;
  }

  async close(): Promise<void> {
    await this.ensemble.close();
  }
}

function localTier(spec: LocalTierSpec, members: readonly WorkerMember[]): LocalTier {
  return new LocalTier(spec.name, members, ruleOf(spec), spec.early);
}

function ruleOf({ name, agreement: said, confidence: threshold, calibrated: fitted, members }: LocalTierSpec): Rule {
  if (fitted !== undefined) return calibrated(fitted);
  if (threshold !== undefined) return confidence(threshold);
  if (said === undefined) return always();
  try {
    return agreement(parseAgreement(said, members.length).theta);
  } catch (error) {
    throw new BundleError(`tier ${name}: ${error instanceof Error ? error.message : String(error)}`);
  }
}
