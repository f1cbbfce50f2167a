/** The rule against `vectors/rule.json`, which the Python implementation wrote: one rule, two languages. */
import { describe, expect, test } from 'vitest';
import { calibrated, type Calibrated, type Stage } from '../src/cascade/calibrated';
import { Cascade } from '../src/cascade/cascade';
import { InputError, TierError } from '../src/cascade/errors';
import { ceilTimes } from '../src/cascade/fraction';
import { agreement, always, confidence, parseAgreement, type Rule } from '../src/cascade/rule';
import { LocalTier, type Member, type Tier } from '../src/cascade/tier';
import { NO_LABEL, type Example, type Vote } from '../src/cascade/types';
import { isSettled } from '../src/cascade/vote';
import vectors from '../vectors/rule.json';
import { outputs } from './packed';

interface StatedRule {
  agreement?: string;
  confidence?: number;
}

interface ToldServer {
  label: number;
  count: number;
  asked: number;
  members: number;
  score: number;
  exit_tier: number;
  tier_votes: (number | null)[];
  degraded: string | null;
}

interface StatedTier {
  outputs?: string | number[][];
  rule?: StatedRule;
  early?: boolean;
  server?: ToldServer;
  broken?: [reason: 'unavailable' | 'timeout' | 'overloaded' | 'rejected', text: string];
}

const EXAMPLE: Example = {
  id: 'x',
  captured: new Uint8Array(),
  pixels: { width: 1, height: 1, channels: 1, data: new Uint8Array(1) },
  deadline: Infinity,
};

function ruleOf(stated: StatedRule, nMembers: number): Rule {
  if (stated.confidence !== undefined) return confidence(stated.confidence);
  return agreement(parseAgreement(stated.agreement ?? '', nMembers).theta);
}

function localTier(name: string, rows: Float32Array[], stated: StatedRule, early: boolean): LocalTier {
  const members = rows.map((row, at): Member => ({ name: `member-${at + 1}`, predict: () => Promise.resolve(row) }));
  return new LocalTier(name, members, ruleOf(stated, members.length), early);
}

function fixed(name: string, answer: () => Promise<Vote>): Tier {
  return { name, rule: always(), nTiers: 1, vote: answer, complete: (_, vote) => Promise.resolve(vote) };
}

function tierOf(stated: StatedTier, number: number, nLabels: number): Tier {
  const { server, broken } = stated;
  if (server) {
    const vote: Vote = {
      ...server,
      nMembers: server.members,
      exitTier: server.exit_tier,
      tierVotes: server.tier_votes.map((share) => share ?? NaN),
      ballots: [],
    };
    return fixed('server', () => Promise.resolve(vote));
  }
  if (broken) return fixed('cloud', () => Promise.reject(new TierError('cloud', ...broken)));
  return localTier(`tier-${number}`, outputs(stated.outputs ?? [], nLabels), stated.rule ?? {}, stated.early ?? true);
}

function row(vote: Vote): unknown[] {
  return [vote.label, vote.count, vote.asked, vote.nMembers, vote.score];
}

test('votes settle exactly where they do in Python', () => {
  const { most, bits } = vectors.settled;
  let at = 0;
  for (let top = 0; top <= most; top++)
    for (let runnerUp = 0; runnerUp <= top; runnerUp++)
      for (let left = 0; left <= most; left++)
        for (let needed = 0; needed <= most; needed++)
          expect(isSettled(top, runnerUp, left, needed), `${top} ${runnerUp} ${left} ${needed}`).toBe(
            bits[at++] === '1',
          );
  expect(at).toBe(bits.length);
});

describe('agreements read as they do in Python', () => {
  const all = vectors.agreements as [string, number, [string, string, number, boolean] | null][];
  test.each(all)('%j of %i members', (text, nMembers, expected) => {
    if (expected === null) {
      expect(() => parseAgreement(text, nMembers)).toThrow(RangeError);
      return;
    }
    const [numerator, denominator, needed, warns] = expected;
    const { theta, isNearMiss } = parseAgreement(text, nMembers);
    expect([String(theta.numerator), String(theta.denominator)]).toEqual([numerator, denominator]);
    expect(ceilTimes(theta, nMembers)).toBe(needed);
    expect(isNearMiss).toBe(warns);
  });
});

test('a tier votes as in Python: label, count, asked, score and whether it stands', async () => {
  for (const [at, one] of vectors.votes.entries()) {
    const tier = localTier('tier', outputs(one.outputs, one.labels), one.rule, one.early);
    const rule = one.last ? always(tier.rule.poolsScores) : tier.rule;
    const vote = await tier.vote(EXAMPLE, rule);
    expect([...row(vote), rule.exits(vote)], `case ${at}`).toEqual(one.vote);
    expect(row(await tier.complete(EXAMPLE, vote)), `case ${at}, completed`).toEqual(one.whole);
  }
}, 60_000);

test('a cascade decides as in Python: exits, votes, degraded answers', async () => {
  for (const [at, one] of vectors.cascades.entries()) {
    const tiers = (one.tiers as StatedTier[]).map((stated, number) => tierOf(stated, number, one.labels));
    const cascade = new Cascade(tiers, one.keep_last_answer);
    if ('error' in one) {
      const thrown: unknown = await cascade.decide(EXAMPLE).catch((error: unknown) => error);
      expect(thrown, `case ${at}`).toBeInstanceOf(TierError);
      expect(`${(thrown as TierError).reason}: ${(thrown as TierError).message}`).toBe(one.error);
      continue;
    }
    const stated = await cascade.decide(EXAMPLE);
    expect([stated.label, stated.exitTier, stated.vote, stated.score], `case ${at}`).toEqual(one.decision);
    expect([stated.asked, stated.nMembers], `case ${at}`).toEqual(one.members);
    expect(stated.tierVotes, `case ${at}`).toEqual(one.tier_votes);
    expect(stated.degraded, `case ${at}`).toBe(one.degraded);
  }
});

test('the vectors have what they are for', () => {
  expect(vectors.votes.length).toBeGreaterThanOrEqual(2000);
  const early = vectors.votes.filter((one) => Number(one.vote[2]) < Number(one.vote[3])).length;
  expect(early).toBeGreaterThan(100);
  const degraded = vectors.cascades.filter((one) => 'degraded' in one && one.degraded !== null).length;
  expect(degraded).toBeGreaterThan(50);
});

test('a cascade by calibrated votes decides as in Python, to the last bit', async () => {
  for (const [at, one] of vectors.calibrated.entries()) {
    const tiers = (one.tiers as (StatedTier & { calibrated?: Calibrated })[]).map((stated, number) => {
      if (!stated.calibrated) return tierOf(stated, number, one.labels);
      const rows = outputs(stated.outputs ?? [], one.labels);
      const members = rows.map((row, member): Member => ({ name: `${member}`, predict: () => Promise.resolve(row) }));
      return new LocalTier(`tier-${number}`, members, calibrated(stated.calibrated));
    });
    const decided = await new Cascade(tiers).decide(EXAMPLE);
    expect([decided.label, decided.exitTier, decided.vote, decided.score], `case ${at}`).toEqual(one.decision);
    expect(decided.tierVotes, `case ${at}`).toEqual(one.tier_votes);
    expect(decided.degraded, `case ${at}`).toBe(one.degraded);
  }
});

test('members on a server count with those here, and others than were calibrated do not', () => {
  const none = { a: [0], c: [0], g: 0, d: [], grids: [[]], n_labels: 3 };
  const stage = (n: number): Stage => ({ ...none, b: Array<number>(n).fill(2), threshold: null, ...fill(n) });
  const fill = (n: number): Pick<Stage, 'a' | 'c' | 'grids'> => ({
    a: Array<number>(n).fill(0),
    c: Array<number>(n).fill(0),
    grids: Array<number[]>(n).fill([]),
  });
  const rule = calibrated({ stages: [stage(3)], n_before: 1 });
  const before = [{ labels: [0], scores: [0.9] }];
  const vote: Vote = { label: 1, count: 2, asked: 2, nMembers: 2, score: 0.5, ballots: [] };
  const shown = { ...vote, said: { labels: [1, 0], scores: [0.5, 0.5] } };
  const fused = rule.fuse?.('cloud', shown, before);
  expect([fused?.label, fused?.count]).toEqual([0, 1]);
  expect(() => rule.fuse?.('cloud', vote, before)).toThrow(/expected the votes of 2 members as calibrated, got 1/);
});

describe('a member that fails does not vote', () => {
  const says = (label: number): Member => ({
    name: `says-${label}`,
    predict: () => Promise.resolve(Float32Array.from([0, 1, 2], (one) => (one === label ? 0.75 : 0.125))),
  });
  const throws: Member = { name: 'throws', predict: () => Promise.reject(new Error('no memory')) };
  const nan: Member = { name: 'nan', predict: () => Promise.resolve(Float32Array.from([NaN, 0.5, 0.5])) };
  const tier = (name: string, agreed: string, ...members: Member[]) =>
    new LocalTier(name, members, agreement(parseAgreement(agreed, members.length).theta));
  const cloud = fixed('cloud', () =>
    Promise.resolve({ label: 2, count: 1, asked: 1, nMembers: 1, score: 1, ballots: [] }),
  );
  const down = fixed('cloud', () => Promise.reject(new TierError('cloud', 'unavailable', 'down')));

  test.each([throws, nan])('$name: the others settle it, wherever it stands among them', async (bad) => {
    for (const members of [
      [bad, says(1), says(1)],
      [says(1), bad, says(1)],
      [says(1), says(1), bad],
    ]) {
      const one = await new Cascade([tier('device', '2/3', ...members), cloud]).decide(EXAMPLE);
      expect([one.label, one.exitTier, one.score, one.degraded]).toEqual([1, 1, 0.75, null]);
      const all = await new Cascade([tier('device', 'unanimous', ...members), cloud]).decide(EXAMPLE);
      expect([all.label, all.exitTier]).toEqual([2, 2]);
      const alone = await new Cascade([tier('device', 'unanimous', ...members), down]).decide(EXAMPLE);
      expect([alone.label, alone.vote, alone.degraded]).toEqual([1, 2 / 3, 'unavailable: tier cloud: down']);
    }
  });

  test('where none votes, the next tier is asked, or the one before has the last word', async () => {
    const silent = tier('device', '2/3', throws, nan);
    const next = await new Cascade([silent, cloud]).decide(EXAMPLE);
    expect([next.label, next.exitTier]).toEqual([2, 2]);
    expect(next.ballots[0]?.map((ballot) => ballot.label)).toEqual([NO_LABEL]); // two thirds are out of reach
    const before = await new Cascade([tier('device', 'unanimous', says(0), says(1)), silent]).decide(EXAMPLE);
    expect([before.label, before.exitTier]).toEqual([0, 1]);
    expect(before.degraded).toContain(
      'failed: tier device: no member voted: member throws: Error: no memory; member nan',
    );
    await expect(new Cascade([silent, down]).decide(EXAMPLE)).rejects.toThrow('no member voted');
    await expect(new Cascade([silent]).decide(EXAMPLE)).rejects.toThrow('no member voted');
  });

  test('what it was asked about is the fault of the example where it says so', async () => {
    const bad: Member = { name: 'bad', predict: () => Promise.reject(new InputError('no image')) };
    await expect(tier('device', '2/3', bad, says(1)).vote(EXAMPLE, always())).rejects.toThrow('no image');
  });
});
