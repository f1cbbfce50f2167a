/**
 * Examples the cloud should have decided and could not be asked about: kept here, asked again later.
 *
 * Bounded by count, bytes and age: the oldest go first. An example is taken out in the transaction that writes down its
 * correction, so it is corrected exactly once.
 */
import type { Decision, Said } from '../cascade/types';
import { committed, DECIDED, done, openDatabase, WAITING } from './database';

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
  readonly captured: Uint8Array;
  /** What the members here said of it, where the cloud's answer counts together with theirs. */
  readonly said?: readonly Said[];
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
}

export class Queue {
  private constructor(
    private readonly database: IDBDatabase,
    private readonly limits: Limits,
  ) {}

  static async open(name = 'coe-device', limits: Limits = LIMITS): Promise<Queue> {
    return new Queue(await openDatabase(name), limits);
  }

  /** Write a decision down; with `captured`, the example also waits to be corrected. */
  async write(decision: Decision, at: number, captured: Uint8Array | null): Promise<void> {
    const transaction = this.database.transaction([WAITING, DECIDED], 'readwrite');
    const { id, label, exitTier, vote, degraded } = decision;
    const kept: Kept = { id, at, label, exitTier, vote, degraded, before: null, correctedAt: null };
    transaction.objectStore(DECIDED).put(kept);
    const said = decision.said ? { said: decision.said } : {};
    if (captured !== null) transaction.objectStore(WAITING).put({ id, at, captured, ...said } satisfies Waiting);
    await committed(transaction);
    await this.keepWithinLimits(at);
  }

  /** The example to ask about next: the freshest. */
  async next(): Promise<Waiting | null> {
    const index = this.database.transaction(WAITING).objectStore(WAITING).index('at');
    const cursor = await done(index.openCursor(null, 'prev'));
    return (cursor?.value as Waiting | undefined) ?? null;
  }

  /**
   * The cloud's answer to an example that waited: it waits no more, and its decision says so.
   *
   * @returns the decision as it is kept now; null where the example no longer waited
   */
  async correct(id: string, decision: Pick<Decision, 'label' | 'exitTier' | 'vote'>, at: number): Promise<Kept | null> {
    const transaction = this.database.transaction([WAITING, DECIDED], 'readwrite');
    const [waiting, decided] = [transaction.objectStore(WAITING), transaction.objectStore(DECIDED)];
    let corrected: Kept | null = null;
    const found = (await done(waiting.get(id))) as Waiting | undefined;
    if (found) {
      const before = (await done(decided.get(id))) as Kept | undefined;
      const { label, exitTier, vote } = decision;
      const own = { id, at: found.at, label, exitTier, vote };
      corrected = { ...own, degraded: null, before: before?.label ?? null, correctedAt: at };
      decided.put(corrected);
      waiting.delete(id);
    }
    await committed(transaction);
    return corrected;
  }

  /** The server will never answer it: it waits no more. */
  async giveUp(id: string): Promise<void> {
    const transaction = this.database.transaction(WAITING, 'readwrite');
    transaction.objectStore(WAITING).delete(id);
    await committed(transaction);
  }

  async count(): Promise<number> {
    return done(this.database.transaction(WAITING).objectStore(WAITING).count());
  }

  /** The latest decisions, the latest first. */
  async decided(most: number): Promise<Kept[]> {
    const kept: Kept[] = [];
    await this.walk(DECIDED, 'prev', (value) => {
      kept.push(value as Kept);
      return kept.length < most;
    });
    return kept;
  }

  async clear(): Promise<void> {
    const transaction = this.database.transaction([WAITING, DECIDED], 'readwrite');
    transaction.objectStore(WAITING).clear();
    transaction.objectStore(DECIDED).clear();
    await committed(transaction);
  }

  close(): void {
    this.database.close();
  }

  private async keepWithinLimits(now: number): Promise<void> {
    const { count, bytes, ageMs, decided } = this.limits;
    let [nWaiting, nBytes, nDecided] = [0, 0, 0];
    await this.walk(WAITING, 'prev', (value, remove) => {
      const waiting = value as Waiting;
      nWaiting += 1;
      nBytes += waiting.captured.length;
      if (nWaiting > count || nBytes > bytes || waiting.at < now - ageMs) remove();
      return true;
    });
    await this.walk(DECIDED, 'prev', (_, remove) => {
      nDecided += 1;
      if (nDecided > decided) remove();
      return true;
    });
  }

  private async walk(
    name: string,
    direction: IDBCursorDirection,
    visit: (value: unknown, remove: () => void) => boolean,
  ): Promise<void> {
    const transaction = this.database.transaction(name, 'readwrite');
    const request = transaction.objectStore(name).index('at').openCursor(null, direction);
    request.onsuccess = () => {
      const cursor = request.result;
      if (cursor && visit(cursor.value, () => cursor.delete())) cursor.continue();
    };
    await committed(transaction);
  }
}
