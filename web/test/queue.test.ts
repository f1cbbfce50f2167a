/** What waits for the cloud: fresh first, bounded, corrected exactly once. */
import 'fake-indexeddb/auto';
import { expect, test, vi } from 'vitest';
import { TierError } from '../src/cascade/errors';
import type { Decision, Vote } from '../src/cascade/types';
import { Drain, type Asked } from '../src/queue/drain';
import { LIMITS, Queue, type Kept, type Limits } from '../src/queue/queue';

let count = 0;

function open(limits: Partial<Limits> = {}): Promise<Queue> {
  count += 1;
  return Queue.open(`queue-${count}`, { ...LIMITS, ...limits });
}

function decision(id: string, label = 1): Decision {
  const none = { tierVotes: [], tierTimesMs: [], call: null, ballots: [], canBeCorrected: true };
  return { id, label, exitTier: 1, vote: 0.5, score: 0.5, asked: 2, nMembers: 2, degraded: 'timeout: x', ...none };
}

const VOTE: Vote = { label: 7, count: 3, asked: 3, nMembers: 3, score: 1, ballots: [], exitTier: 2 };

function drained(queue: Queue, cloud: Partial<Asked>): { drain: Drain; corrected: Kept[] } {
  const corrected: Kept[] = [];
  const asked: Asked = { ask: () => Promise.resolve(VOTE), nUnderWay: () => 0, nTiersHere: 1, ...cloud };
  return { drain: new Drain(queue, asked, (kept) => corrected.push(kept)), corrected };
}

async function fill(queue: Queue, ids: string[]): Promise<void> {
  for (const [at, id] of ids.entries()) await queue.write(decision(id), 1000 + at, Uint8Array.from([at]));
}

test('the freshest goes first, and each is corrected once', async () => {
  const queue = await open();
  await fill(queue, ['a', 'b', 'c']);
  const asked: string[] = [];
  const { drain, corrected } = drained(queue, {
    ask: (id) => {
      asked.push(id);
      return Promise.resolve(VOTE);
    },
  });
  await drain.run();
  expect(asked).toEqual(['c', 'b', 'a']);
  expect(corrected.map((kept) => [kept.id, kept.before, kept.label, kept.exitTier])).toEqual([
    ['c', 1, 7, 3],
    ['b', 1, 7, 3],
    ['a', 1, 7, 3],
  ]);
  expect(await queue.count()).toBe(0);
  await drain.run();
  expect(asked.length).toBe(3);
  drain.stop();
});

test('a correction that comes twice counts once', async () => {
  const queue = await open();
  await fill(queue, ['a']);
  const answer = { label: 7, exitTier: 2, vote: 1 };
  const both = await Promise.all([queue.correct('a', answer, 5), queue.correct('a', answer, 6)]);
  expect(both.filter((kept) => kept !== null).length).toBe(1);
});

test('the backlog is bounded by count, bytes and age, and the oldest go first', async () => {
  const few = await open({ count: 2 });
  await fill(few, ['a', 'b', 'c']);
  expect([await few.count(), (await few.next())?.id]).toEqual([2, 'c']);
  const small = await open({ bytes: 25 });
  for (const [at, id] of ['a', 'b', 'c'].entries()) await small.write(decision(id), at, new Uint8Array(10));
  expect(await small.count()).toBe(2);
  const young = await open({ ageMs: 100 });
  await young.write(decision('a'), 0, new Uint8Array(1));
  await young.write(decision('b'), 1000, new Uint8Array(1));
  expect((await young.next())?.id).toBe('b');
  expect(await young.count()).toBe(1);
});

test('decisions are kept to look back at, the latest first, so many of them', async () => {
  const queue = await open({ decided: 2 });
  for (const [at, id] of ['a', 'b', 'c'].entries()) await queue.write(decision(id), at, null);
  expect((await queue.decided(10)).map((kept) => kept.id)).toEqual(['c', 'b']);
  expect(await queue.count()).toBe(0);
});

test('while the cloud is away nothing is lost, and it is not asked on and on', async () => {
  const queue = await open();
  await fill(queue, ['a', 'b']);
  const ask = vi.fn(() => Promise.reject(new TierError('cloud', 'unavailable', 'away')));
  const { drain, corrected } = drained(queue, { ask });
  await drain.run();
  drain.stop();
  expect([ask.mock.calls.length, corrected.length, await queue.count()]).toEqual([1, 0, 2]);
});

test('what the server refuses for good waits no more', async () => {
  const queue = await open();
  await fill(queue, ['a']);
  const { drain } = drained(queue, { ask: () => Promise.reject(new TierError('cloud', 'rejected', 'no image')) });
  await drain.run();
  expect(await queue.count()).toBe(0);
});

test('an answer the server itself calls degraded corrects nothing yet', async () => {
  const queue = await open();
  await fill(queue, ['a']);
  const { drain, corrected } = drained(queue, { ask: () => Promise.resolve({ ...VOTE, degraded: 'timeout: next' }) });
  await drain.run();
  drain.stop();
  expect([corrected.length, await queue.count()]).toEqual([0, 1]);
});

test('the backlog waits while fresh examples are on their way', async () => {
  const queue = await open();
  await fill(queue, ['a']);
  let live = 2;
  const seen: number[] = [];
  const { drain } = drained(queue, {
    nUnderWay: () => (live > 0 ? live-- : 0),
    ask: () => {
      seen.push(live);
      return Promise.resolve(VOTE);
    },
  });
  await drain.run();
  expect(seen).toEqual([0]);
});

test('what a page asks about is for nobody else until it should have its answer', async () => {
  const queue = await open();
  await queue.hold(decision('a'), 1000, Uint8Array.from([1]), 5000);
  expect([await queue.next(new Set(), 4000), await queue.countIdle(4000), await queue.count()]).toEqual([null, 0, 1]);
  expect((await queue.next(new Set(), 5000))?.id).toBe('a');
  await queue.write({ ...decision('a', 7), degraded: null }, 1000, null);
  expect([await queue.count(), (await queue.decided(1))[0]?.label]).toEqual([0, 7]);
});

test('what is given up says why', async () => {
  const queue = await open();
  await fill(queue, ['a']);
  const { drain } = drained(queue, { ask: () => Promise.reject(new TierError('cloud', 'rejected', 'no image')) });
  await drain.run();
  expect((await queue.decided(1))[0]?.givenUp).toBe('tier cloud: no image');
});

test('where a database takes nothing, what waits is in memory, and is corrected there', async () => {
  const troubles: string[] = [];
  const put = vi.spyOn(IDBObjectStore.prototype, 'put').mockImplementation(() => {
    throw new DOMException('full', 'QuotaExceededError');
  });
  const queue = await Queue.open('full', LIMITS, (why) => troubles.push(why));
  await fill(queue, ['a']);
  const { drain, corrected } = drained(queue, {});
  await drain.run();
  put.mockRestore();
  expect([troubles[0], corrected.map((kept) => kept.label), await queue.count()]).toEqual([
    'QuotaExceededError',
    [7],
    0,
  ]);
});
