/** What came of the examples decided on this page, as running sums. */
import type { Decision } from '../cascade/types';

export interface Tally {
  /** `Date.now()` of when the sums began. */
  readonly since: number;
  readonly count: number;
  /** Decided here because the members agreed. */
  readonly kept: number;
  /** Decided here because the cloud gave no answer, and has given none since. */
  readonly degraded: number;
  readonly latencyMs: number;
  /** Of all calls, those about what had to wait as well. */
  readonly bytesSent: number;
  /** Had everything been sent. */
  readonly bytesOfAll: number;
}

export function empty(since = Date.now()): Tally {
  return { since, count: 0, kept: 0, degraded: 0, latencyMs: 0, bytesSent: 0, bytesOfAll: 0 };
}

export function added(tally: Tally, decision: Decision, nTiersHere: number, latencyMs: number, bytes: number): Tally {
  const isHere = decision.exitTier <= nTiersHere && decision.degraded === null;
  return {
    ...tally,
    count: tally.count + 1,
    kept: tally.kept + (isHere ? 1 : 0),
    degraded: tally.degraded + (decision.degraded === null ? 0 : 1),
    latencyMs: tally.latencyMs + latencyMs,
    bytesSent: tally.bytesSent + (decision.call?.bytesSent ?? 0),
    bytesOfAll: tally.bytesOfAll + bytes,
  };
}
