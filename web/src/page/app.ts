/** The page at work: decides what the sources give, shows what came of it, keeps what must be asked again. */
import { InputError, TierError } from '../cascade/errors';
import type { Decision, Said } from '../cascade/types';
import { Drain } from '../queue/drain';
import { keptOf, type Kept, type Queue } from '../queue/queue';
import type { Captured } from '../sources/source';
import type { Device, Decided } from './device';
import {
  showDecided,
  showDeferred,
  showFailed,
  showLater,
  showNothing,
  showRecent,
  showTally,
  showWaiting,
} from './show';
import { added, empty, type Tally } from './tally';

const N_KEPT_SHOWN = 20;
const HOLD_MS = 300; // longest that a call waits until its example is in the queue
const GRACE_MS = 2000; // after a call's deadline, until another tab may ask about its example

export class App {
  tally: Tally = empty();
  private recent: Kept[] = [];
  private readonly drain: Drain | null = null;
  /** Examples taken, and clearings: only the latest of them is shown. */
  private nTaken = 0;
  private shown = '';
  /** Decided by this phone alone since the page was opened. */
  private readonly alone = new Set<string>();
  private keeping: Promise<void> = Promise.resolve();

  constructor(
    readonly device: Device,
    private readonly queue: Queue,
    private readonly onChange: (nWaiting: number) => void,
    private readonly onDecided: (decided: Decided) => void,
  ) {
    const { cloud } = device;
    if (cloud) {
      const asked = {
        ask: async (id: string, captured: Uint8Array, said: readonly Said[] = []) => {
          const vote = await cloud.ask(id, captured, performance.now() + cloud.options.deadlineMs);
          return cloud.rule.fuse ? cloud.rule.fuse(cloud.name, vote, said) : vote;
        },
        nUnderWay: () => cloud.nUnderWay,
        nTiersHere: device.nTiersHere,
      };
      this.drain = new Drain(queue, asked, this.onLater, () => void this.countWaiting(), this.onSent);
      window.addEventListener('online', () => this.drain?.wake());
      document.addEventListener('visibilitychange', () => {
        if (!document.hidden) this.drain?.wake();
      });
    }
    queue.onOther(() => void this.readKept());
  }

  /** What earlier visits left: decisions to look back at, examples to ask about. */
  async resume(): Promise<void> {
    showTally(this.tally);
    await this.readKept();
    this.drain?.wake();
  }

  /** Decide and show; what cannot be read is shown, too. An answer that is not the latest goes to the list alone. */
  async take({ id, bytes }: Captured): Promise<void> {
    this.nTaken += 1;
    const own = this.nTaken;
    const isLatest = (): boolean => own === this.nTaken;
    try {
      const decided = await this.decide(id, bytes, (soFar) => {
        if (isLatest()) showDeferred(soFar, this.device);
      });
      if (isLatest()) {
        this.shown = id;
        showDecided(decided, this.device);
      }
      showTally(this.tally);
      showRecent(this.recent, this.device);
    } catch (error) {
      if (!(error instanceof InputError || error instanceof TierError)) throw error;
      if (isLatest()) showFailed(error.message);
    }
  }

  /** What was drawn is cleared: its answer, should it still come, is not shown here. */
  clear(): void {
    this.nTaken += 1;
    this.shown = '';
    showNothing();
  }

  /** Decide and count; it is kept afterwards (`settled`). What scripts call as well. */
  async decide(id: string, captured: Uint8Array, onDeferred?: (soFar: Decision) => void): Promise<Decided> {
    const decided = await this.device.decide(id, captured, async (soFar, sent) => {
      onDeferred?.(soFar);
      await this.hold(soFar, sent);
    });
    const { decision, latencyMs, bytesIfSent, at } = decided;
    this.tally = added(this.tally, decision, this.device.nTiersHere, latencyMs, bytesIfSent);
    if (decision.degraded !== null) this.alone.add(id);
    this.recent = [keptOf(decision, at), ...this.recent.filter((one) => one.id !== id)].slice(0, N_KEPT_SHOWN);
    this.keeping = this.keep(decided);
    this.onDecided(decided);
    return decided;
  }

  /** Once what is decided is kept, or cannot be. */
  async settled(): Promise<void> {
    await this.keeping;
  }

  /** Ask about what waits now, rather than after the pause. */
  wake(): void {
    this.drain?.wake();
  }

  async forget(): Promise<void> {
    await this.queue.clear();
    this.tally = empty();
    this.alone.clear();
    showTally(this.tally);
    await this.readKept();
  }

  /** Into the queue before the cloud is asked, so that a reload loses nothing; a slow storage holds nobody up. */
  private async hold(soFar: Decision, sent: Uint8Array): Promise<void> {
    const { cloud, bundle, nTiersHere } = this.device;
    if (!cloud || !bundle.keep_last_answer || soFar.ballots.length < nTiersHere) return;
    const now = Date.now();
    const held = this.queue.hold(soFar, now, sent, now + cloud.options.deadlineMs + GRACE_MS);
    await Promise.race([held, new Promise((resolve) => setTimeout(resolve, HOLD_MS))]);
  }

  private async keep({ decision, sent, at }: Decided): Promise<void> {
    const waits = this.device.cloud !== null && decision.canBeCorrected;
    await this.queue.write(decision, at, waits ? sent : null);
    if (waits) {
      const { storage } = navigator as { storage?: Partial<StorageManager> };
      void storage?.persist?.(); // what waits is not to be cleared away
      await this.countWaiting();
      this.drain?.expect();
    } else if (decision.call !== null) {
      this.drain?.wake(); // the cloud answers: whatever waits may go now
    }
  }

  private readonly onLater = (kept: Kept): void => {
    if (kept.correctedAt !== null && this.alone.delete(kept.id)) {
      this.tally = { ...this.tally, degraded: this.tally.degraded - 1 };
    }
    this.recent = this.recent.some((one) => one.id === kept.id)
      ? this.recent.map((one) => (one.id === kept.id ? kept : one))
      : [kept, ...this.recent].slice(0, N_KEPT_SHOWN);
    if (kept.id === this.shown) showLater(kept, this.device);
    showTally(this.tally);
    showRecent(this.recent, this.device);
  };

  private readonly onSent = (bytes: number): void => {
    this.tally = { ...this.tally, bytesSent: this.tally.bytesSent + bytes };
    showTally(this.tally);
  };

  /** What is kept, as this and other tabs have left it. */
  private async readKept(): Promise<void> {
    this.recent = await this.queue.decided(N_KEPT_SHOWN);
    for (const kept of this.recent) {
      if (kept.correctedAt !== null && this.alone.has(kept.id)) this.onLater(kept);
    }
    showRecent(this.recent, this.device);
    await this.countWaiting();
  }

  private async countWaiting(): Promise<void> {
    const count = await this.queue.countIdle();
    showWaiting(count);
    this.onChange(count);
  }
}
