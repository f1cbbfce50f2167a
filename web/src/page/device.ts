/** This phone as a device of the cascade: its members loaded, its examples decided, what waits kept. */
import { calibrated } from '../cascade/calibrated';
import { Cascade } from '../cascade/cascade';
import { BundleError } from '../cascade/errors';
import { agreement, always, confidence, parseAgreement, type Rule } from '../cascade/rule';
import { LocalTier, type Tier } from '../cascade/tier';
import type { Decision } from '../cascade/types';
import { fetchModel, type Bundle, type LocalTierSpec } from '../models/bundle';
import { decodeImage } from '../models/image';
import { OnnxMember } from '../models/member';
import { openRuntime, type Backend, type Runtime } from '../models/runtime';
import { question } from '../protocol/message';
import { RemoteTier } from '../protocol/remote';

export interface Decided {
  readonly decision: Decision;
  readonly latencyMs: number;
  readonly decodeMs: number;
  readonly captured: Uint8Array;
  /** Of a call that would have sent it. */
  readonly bytesIfSent: number;
  /** `Date.now()` */
  readonly at: number;
}

export class Device {
  private constructor(
    readonly bundle: Bundle,
    readonly runtime: Runtime,
    readonly cascade: Cascade,
    readonly members: readonly OnnxMember[],
    /** The cloud; null where the cascade has none. */
    readonly cloud: RemoteTier | null,
  ) {}

  get nTiersHere(): number {
    return this.cascade.tiers.filter((tier) => tier !== this.cloud).length;
  }

  /** @throws BundleError a model is not what it should be */
  static async open(bundle: Bundle, backend: Backend, headers: () => Record<string, string>): Promise<Device> {
    const specs = bundle.tiers.flatMap((tier) => ('members' in tier ? tier.members : []));
    const [runtime, models] = await Promise.all([
      openRuntime(backend),
      Promise.all(specs.map((spec) => fetchModel(spec, headers()))),
    ]);
    const members: OnnxMember[] = [];
    for (const [at, spec] of specs.entries()) {
      members.push(await OnnxMember.open(spec, models[at] ?? new Uint8Array(), bundle.labels.length, runtime));
    }
    const left = [...members];
    let cloud: RemoteTier | null = null;
    const tiers = bundle.tiers.map((tier): Tier => {
      if ('members' in tier) return localTier(tier, left.splice(0, tier.members.length));
      cloud = new RemoteTier(tier.name, {
        model: tier.model,
        fingerprint: bundle.fingerprint,
        nLabels: bundle.labels.length,
        deadlineMs: tier.deadline_ms,
        headers,
        ...(tier.calibrated ? { rule: calibrated(tier.calibrated) } : {}),
      });
      return cloud;
    });
    return new Device(bundle, runtime, new Cascade(tiers, bundle.keep_last_answer), members, cloud);
  }

  /**
   * One example's answer.
   *
   * @param onDeferred called with the answer so far, should the cloud be asked
   * @throws InputError it is no image
   */
  async decide(id: string, captured: Uint8Array, onDeferred?: (soFar: Decision) => void): Promise<Decided> {
    const started = performance.now();
    const pixels = await decodeImage(captured, this.bundle.input.channels);
    const decodeMs = performance.now() - started;
    const decision = await this.cascade.decide({ id, captured, pixels, deadline: Infinity }, onDeferred);
    const latencyMs = performance.now() - started;
    const bytesIfSent = question(id, captured).body.length;
    return { decision, latencyMs, decodeMs, captured, bytesIfSent, at: Date.now() };
  }

  /** What every member says of an example, whatever the vote. */
  async outputs(captured: Uint8Array): Promise<Float32Array[]> {
    const pixels = await decodeImage(captured, this.bundle.input.channels);
    const outputs: Float32Array[] = [];
    for (const member of this.members) outputs.push(await member.predict(pixels));
    return outputs;
  }

  async close(): Promise<void> {
    for (const member of this.members) await member.close();
  }
}

function localTier(spec: LocalTierSpec, members: readonly OnnxMember[]): LocalTier {
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
