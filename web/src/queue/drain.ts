/** The backlog's way to the cloud: one example at a time, and never while a fresh one is on its way. */
import { TierError } from '../cascade/errors';
import type { Said, Vote } from '../cascade/types';
import type { Kept, Queue } from './queue';

const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 60_000;
const LOCK = 'coe-device-queue';

export interface Asked {
  /** @throws TierError no answer */
  ask(id: string, captured: Uint8Array, said?: readonly Said[]): Promise<Vote>;
  /** Live examples on their way to the cloud now: these go first. */
  nUnderWay(): number;
  /** Tiers on this device, ahead of the cloud's. */
  readonly nTiersHere: number;
}

/** Asks about what waits, whenever it makes sense: at once by `wake`, else after growing pauses. */
export class Drain {
  private timer: ReturnType<typeof setTimeout> | null = null;
  private pauseMs = FIRST_PAUSE_MS;
  private isAtWork = false;

  constructor(
    private readonly queue: Queue,
    private readonly cloud: Asked,
    private readonly onChanged: (kept: Kept) => void,
    private readonly onChange: () => void = () => undefined,
    /** Called with the bytes of each call, whether it was answered or not. */
    private readonly onSent: (bytes: number) => void = () => undefined,
  ) {}

  /** The network is back, or a call has just gone through: try at once. */
  wake(): void {
    this.pauseMs = FIRST_PAUSE_MS;
    this.schedule(0);
  }

  /** Something waits: try after a while. */
  expect(): void {
    if (this.timer === null && !this.isAtWork) this.schedule(this.pauseMs);
  }

  stop(): void {
    if (this.timer !== null) clearTimeout(this.timer);
    this.timer = null;
  }

  /** Ask until nothing waits, or the cloud does not answer. One tab of the page at a time does. */
  async run(): Promise<void> {
    if (this.isAtWork) return;
    this.isAtWork = true;
    try {
      const locks = (globalThis.navigator as { locks?: LockManager } | undefined)?.locks;
      if (locks) await locks.request(LOCK, { ifAvailable: true }, (lock) => (lock ? this.askAll() : undefined));
      else await this.askAll();
    } finally {
      this.isAtWork = false;
      this.onChange();
    }
    if ((await this.queue.count()) > 0) {
      this.schedule(this.pauseMs);
      this.pauseMs = Math.min(this.pauseMs * 2, LONGEST_PAUSE_MS);
    }
  }

  private async askAll(): Promise<void> {
    const asked = new Set<string>();
    for (;;) {
      while (this.cloud.nUnderWay() > 0) await new Promise((resolve) => setTimeout(resolve, 20));
      const waiting = await this.queue.next(asked);
      if (waiting === null) return;
      asked.add(waiting.id);
      try {
        const vote = await this.cloud.ask(waiting.id, waiting.captured, waiting.said);
        this.onSent(vote.call?.bytesSent ?? 0);
        if ((vote.degraded ?? null) !== null) return; // the server's own next tier is away: there is a better answer to wait for
        this.pauseMs = FIRST_PAUSE_MS;
        const exitTier = this.cloud.nTiersHere + (vote.exitTier ?? 1);
        const decision = { label: vote.label, exitTier, vote: vote.count / vote.asked };
        const kept = await this.queue.correct(waiting.id, decision, Date.now());
        if (kept) this.onChanged(kept);
      } catch (error) {
        if (!(error instanceof TierError)) throw error;
        this.onSent(error.call?.bytesSent ?? 0);
        if (error.passes) return;
        const kept = await this.queue.giveUp(waiting.id, error.message);
        if (kept) this.onChanged(kept);
      }
      this.onChange();
    }
  }

  private schedule(afterMs: number): void {
    this.stop();
    this.timer = setTimeout(() => {
      this.timer = null;
      void this.run();
    }, afterMs);
  }
}
