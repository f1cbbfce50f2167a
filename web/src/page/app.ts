/** The page at work: decides what the sources give, shows what came of it, keeps what must be asked again. */
import { InputError, TierError } from '../cascade/errors';
import type { Decision, Said } from '../cascade/types';
import { Drain } from '../queue/drain';
import type { Kept, Queue } from '../queue/queue';
import type { Captured } from '../sources/source';
import type { Device, Decided } from './device';
import { showDecided, showDeferred, showFailed, showRecent, showTally, showWaiting } from './show';
import { added, EMPTY, type Tally } from './tally';

const N_KEPT_SHOWN = 20;

export class App {
  tally: Tally = EMPTY;
  private recent: Kept[] = [];
  private readonly drain: Drain | null = null;

  /** @param queue null where this browser keeps nothing: then a degraded answer stays one */
  constructor(
    readonly device: Device,
    private readonly queue: Queue | null,
    private readonly onChange: (nWaiting: number) => void,
    private readonly onDecided: (decided: Decided) => void,
    private readonly onIdentity: () => void,
  ) {
    const { cloud } = device;
    if (cloud && queue) {
      const asked = {
        ask: async (id: string, captured: Uint8Array, said: readonly Said[] = []) => {
          const vote = await cloud.ask(id, captured, performance.now() + cloud.options.deadlineMs);
          return cloud.rule.fuse ? cloud.rule.fuse(cloud.name, vote, said) : vote;
        },
        nUnderWay: () => cloud.nUnderWay,
        nTiersHere: device.nTiersHere,
      };
      this.drain = new Drain(queue, asked, this.onCorrected, () => void this.countWaiting());
      window.addEventListener('online', () => this.drain?.wake());
      document.addEventListener('visibilitychange', () => {
        if (!document.hidden) this.drain?.wake();
      });
    }
  }

  /** What earlier visits left: decisions to look back at, examples to ask about. */
  async resume(): Promise<void> {
    this.recent = (await this.queue?.decided(N_KEPT_SHOWN)) ?? [];
    showRecent(this.recent, this.device);
    showTally(this.tally);
    await this.countWaiting();
    this.drain?.wake();
  }

  /** Decide and show; what cannot be read is shown, too. */
  async take({ id, bytes }: Captured): Promise<void> {
    try {
      const decided = await this.decide(id, bytes, (soFar) => {
        showDeferred(soFar, this.device);
      });
      showDecided(decided, this.device);
      showTally(this.tally);
      showRecent(this.recent, this.device);
    } catch (error) {
      if (!(error instanceof InputError || error instanceof TierError)) throw error;
      showFailed(error.message);
    }
  }

  /** Decide, count, and keep what the cloud should still correct; what scripts call as well. */
  async decide(id: string, captured: Uint8Array, onDeferred?: (soFar: Decision) => void): Promise<Decided> {
    const decided = await this.device.decide(id, captured, onDeferred);
    const { decision, latencyMs, bytesIfSent, at } = decided;
    this.tally = added(this.tally, decision, this.device.nTiersHere, latencyMs, bytesIfSent);
    const { label, exitTier, vote, degraded } = decision;
    this.recent = [{ id, at, label, exitTier, vote, degraded, before: null, correctedAt: null }, ...this.recent];
    this.recent.length = Math.min(this.recent.length, N_KEPT_SHOWN);
    await this.keep(decided);
    this.onDecided(decided);
    if (decision.degraded !== null && /token|bearer|authoriz/i.test(decision.degraded)) this.onIdentity();
    return decided;
  }

  /** Ask about what waits now, rather than after the pause. */
  wake(): void {
    this.drain?.wake();
  }

  async forget(): Promise<void> {
    await this.queue?.clear();
    [this.recent, this.tally] = [[], EMPTY];
    showRecent(this.recent, this.device);
    showTally(this.tally);
    await this.countWaiting();
  }

  private async keep({ decision, captured, at }: Decided): Promise<void> {
    if (!this.queue) return;
    const waits = this.device.cloud !== null && decision.canBeCorrected;
    await this.queue.write(decision, at, waits ? captured : null);
    if (waits) {
      void (navigator as { storage?: StorageManager }).storage?.persist(); // what waits is not to be cleared away
      await this.countWaiting();
      this.drain?.expect();
    } else if (decision.call !== null) {
      this.drain?.wake(); // the cloud answers: whatever waits may go now
    }
  }

  private readonly onCorrected = (kept: Kept): void => {
    this.recent = this.recent.some((one) => one.id === kept.id)
      ? this.recent.map((one) => (one.id === kept.id ? kept : one))
      : [kept, ...this.recent].slice(0, N_KEPT_SHOWN);
    showRecent(this.recent, this.device);
  };

  private async countWaiting(): Promise<void> {
    const count = (await this.queue?.count()) ?? 0;
    showWaiting(count);
    this.onChange(count);
  }
}
