/**
 * Examples that the cloud has to decide: kept here before it is asked, until it has answered.
 *
 * Bounded by count, bytes and age: the oldest go first. An example is taken out in the transaction that writes down its
 * answer, so it is answered exactly once, in whichever tab.
 */
import type { Decision, Said } from '../cascade/types';
import { Database, DECIDED, WAITING, type Change } from './database';

export interface Limits {
  readonly count: number;
  readonly bytes: number;
  readonly ageMs: number;
  /** Decisions kept to look back at. */
  readonly decided: number;
}

export const LIMITS: Limits = { count: 500, bytes: 32 * 2 ** 20, ageMs: 7 * 24 * 3600 * 1000, decided: 200 };

export interface Waiting {
  readonly id: string;
  /** `Date.now()` of when it was captured. */
  readonly at: number;
  /** As it is sent. */
  readonly captured: Uint8Array;
  /** What the members here said of it, where the cloud's answer counts together with theirs. */
  readonly said?: readonly Said[];
  /** `Date.now()` until which the page that took it is asking about it. */
  readonly askedUntil?: number;
  /** That page. */
  readonly asker?: string;
}

/** A decision as it is kept: without what each member said. */
export interface Kept {
  readonly id: string;
  readonly at: number;
  readonly label: number;
  readonly exitTier: number;
  readonly vote: number;
  readonly degraded: string | null;
  /** Its label before the cloud corrected it; null where it was not, or not yet. */
  readonly before: number | null;
  readonly correctedAt: number | null;
  /** Why the cloud will never be asked again, where it should have been. */
  readonly givenUp?: string;
}

export type Answer = Pick<Decision, 'label' | 'exitTier' | 'vote'>;

export class Queue {
  /** This page, and the one before it in this tab, which asks about nothing any more. */
  private readonly page = `${Date.now()}-${Math.random()}`;
  private readonly pageBefore = replaceNote('coe-device-page', this.page);
  private readonly channel = 'BroadcastChannel' in globalThis ? new BroadcastChannel('coe-device') : null;

  private constructor(
    private readonly database: Database,
    private readonly limits: Limits,
  ) {}

  /** @param onTrouble called with why, whenever something is kept in memory alone */
  static async open(name = 'coe-device', limits: Limits = LIMITS, onTrouble?: (why: string) => void): Promise<Queue> {
    return new Queue(await Database.open(name, onTrouble), limits);
  }

  /** Called whenever another tab has changed what is kept. */
  onOther(changed: () => void): void {
    this.channel?.addEventListener('message', changed);
  }

  /** An example that is about to be asked about: should this page end before the answer, it waits. */
  async hold(soFar: Decision, at: number, captured: Uint8Array, askedUntil: number): Promise<void> {
    const degraded = 'unavailable: the page was closed before the answer came';
    await this.change({
      put: [
        [DECIDED, keptOf({ ...soFar, degraded }, at)],
        [WAITING, { ...waitingOf(soFar, at, captured), askedUntil, asker: this.page } as Waiting],
      ],
    });
    await this.keepWithinLimits(at);
  }

  /** Write a decision down; with `captured`, the example waits from now on, else it waits no more. */
  async write(decision: Decision, at: number, captured: Uint8Array | null): Promise<void> {
    const kept = [DECIDED, keptOf(decision, at)] as const;
    if (captured === null) await this.change({ put: [kept], remove: [[WAITING, decision.id]] });
    else await this.change({ put: [kept, [WAITING, waitingOf(decision, at, captured)]] });
    await this.keepWithinLimits(at);
  }

  /** The example to ask about next: the freshest of those nobody asks about. */
  async next(except: ReadonlySet<string> = new Set(), now = Date.now()): Promise<Waiting | null> {
    return (await this.waiting()).find((one) => this.isIdle(one, now) && !except.has(one.id)) ?? null;
  }

  /**
   * The cloud's answer to an example that waited: it waits no more, and its decision says so.
   *
   * @returns the decision as it is kept now; null where the example no longer waited
   */
  async correct(id: string, { label, exitTier, vote }: Answer, at: number): Promise<Kept | null> {
    const before = (await this.database.get(DECIDED, id)) as Kept | undefined;
    const own = { id, at: before?.at ?? at, label, exitTier, vote };
    const kept: Kept = { ...own, degraded: null, before: before?.label ?? null, correctedAt: at };
    return (await this.change({ put: [[DECIDED, kept]], remove: [[WAITING, id]] }, [WAITING, id])) ? kept : null;
  }

  /**
   * The server will never answer it: it waits no more, and its decision says why.
   *
   * @returns the decision as it is kept now
   */
  async giveUp(id: string, why: string): Promise<Kept | null> {
    const before = (await this.database.get(DECIDED, id)) as Kept | undefined;
    const kept = before ? { ...before, givenUp: why } : null;
    await this.change({ put: kept ? [[DECIDED, kept]] : [], remove: [[WAITING, id]] }, [WAITING, id]);
    return kept;
  }

  async count(): Promise<number> {
    return (await this.waiting()).length;
  }

  /** Those of them about which nobody asks at the moment. */
  async countIdle(now = Date.now()): Promise<number> {
    return (await this.waiting()).filter((one) => this.isIdle(one, now)).length;
  }

  /** The latest decisions, the latest first. */
  async decided(most: number): Promise<Kept[]> {
    return ((await this.database.all(DECIDED)) as Kept[]).slice(0, most);
  }

  async clear(): Promise<void> {
    const rows = await Promise.all([this.database.all(WAITING), this.database.all(DECIDED)]);
    const [waiting, decided] = rows.map((all) => all.map((row) => row.id));
    await this.change({
      remove: [
        ...(waiting ?? []).map((id) => [WAITING, id] as const),
        ...(decided ?? []).map((id) => [DECIDED, id] as const),
      ],
    });
  }

  close(): void {
    this.channel?.close();
    this.database.close();
  }

  private isIdle({ askedUntil = 0, asker }: Waiting, now: number): boolean {
    return askedUntil <= now || asker === this.pageBefore;
  }

  private async waiting(): Promise<Waiting[]> {
    return (await this.database.all(WAITING)) as Waiting[];
  }

  private async change(change: Change, unless?: readonly [typeof WAITING, string]): Promise<boolean> {
    const isMade = await this.database.change(change, unless);
    if (isMade) this.channel?.postMessage('changed');
    return isMade;
  }

  private async keepWithinLimits(now: number): Promise<void> {
    const { count, bytes, ageMs, decided } = this.limits;
    let [nWaiting, nBytes] = [0, 0];
    const remove: [typeof WAITING | typeof DECIDED, string][] = [];
    for (const waiting of await this.waiting()) {
      nWaiting += 1;
      nBytes += waiting.captured.length;
      if (nWaiting > count || nBytes > bytes || waiting.at < now - ageMs) remove.push([WAITING, waiting.id]);
    }
    for (const one of (await this.database.all(DECIDED)).slice(decided)) remove.push([DECIDED, one.id]);
    if (remove.length > 0) await this.database.change({ remove });
  }
}

export function keptOf({ id, label, exitTier, vote, degraded }: Decision, at: number): Kept {
  return { id, at, label, exitTier, vote, degraded, before: null, correctedAt: null };
}

function waitingOf({ id, said }: Decision, at: number, captured: Uint8Array): Waiting {
  return { id, at, captured, ...(said ? { said } : {}) };
}

/** What this tab had noted; null where it had, or keeps, nothing. */
function replaceNote(name: string, value: string): string | null {
  try {
    const before = sessionStorage.getItem(name);
    sessionStorage.setItem(name, value);
    return before;
  } catch {
    return null;
  }
}
