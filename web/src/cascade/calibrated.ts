/**
 * The calibrated vote: each member's vote counts by what it is worth and how sure it is. As `coe/calibration/vote.py`,
 * to the last bit; `vectors/` holds both to it.
 */
import { TierError } from './errors';
import type { Rule } from './rule';
import { NO_LABEL, type Said, type Vote } from './types';

/** The fitted numbers of one stage: all members asked by the end of one tier, as `calibration.json` has them. */
export interface Stage {
  readonly b: readonly number[];
  readonly a: readonly number[];
  readonly c: readonly number[];
  readonly g: number;
  readonly d: readonly number[];
  readonly grids: readonly (readonly number[])[];
  readonly n_labels: number;
  readonly threshold: number | null;
}

const UNITS = 2 ** 40;
const LARGEST_SCORE = 64;
const LOG2_E = 1.4426950408889634;
const [LN2_HIGH, LN2_LOW] = [6.9314718036912381649e-1, 1.90821492927058770002e-10];
const FACTORIALS = [479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6]; // of 12 to 3

/** As a cascade's file has it: the stages of the tiers that a tier stands for, and the members before them. */
export interface Calibrated {
  readonly stages: readonly Stage[];
  readonly n_before: number;
}

/** The answer stands where the label's probability, given what all members asked so far said, is high enough. */
export function calibrated({ stages, n_before: nBefore }: Calibrated): Rule {
  return {
    poolsScores: false,
    needed: () => null,
    exits: (vote) => vote.score >= (stages[stages.length - 1]?.threshold ?? -Infinity),
    fuse: (tier, vote, before) => {
      const own = saidBy(vote);
      const last = stages[stages.length - 1];
      const stage = stages[Math.min(vote.exitTier ?? 1, stages.length) - 1];
      const said = joined([...before, own]);
      const isCascade = (vote.tierVotes?.length ?? 1) > 1; // of which the example may not reach the end
      const [most, n] = [last?.b.length ?? 0, said.labels.length];
      if (!stage || n > most || (n < most && !isCascade)) {
        const text = `expected the votes of ${most - nBefore} members as calibrated, got ${n - nBefore}`;
        throw new TierError(tier, 'rejected', text, vote.call ?? null);
      }
      if (vote.label === NO_LABEL) return { ...vote, said: own };
      const { label, p } = posterior(stage, said);
      const count = own.labels.filter((one) => one === label).length;
      return { ...vote, label, count, score: p, said: own };
    },
  };
}

function joined(parts: readonly Said[]): Said {
  return { labels: parts.flatMap((one) => one.labels), scores: parts.flatMap((one) => one.scores) };
}

/** The label and its probability. */
export function posterior(stage: Stage, said: Said): { label: number; p: number } {
  const nMembers = stage.b.length;
  const share = stage.g / Math.max(nMembers - 1, 1);
  const bias = stage.d.map((own) => roundHalfEven(own * UNITS));
  const utils = new Map<number, { util: number; votes: number }>();
  for (const [at, label] of said.labels.entries()) {
    if (label === -1) continue;
    const before = utils.get(label) ?? { util: 0, votes: 0 };
    const worth = roundHalfEven(worthOf(stage, at, said.scores[at] ?? NaN) * UNITS);
    utils.set(label, { util: before.util + worth, votes: before.votes + 1 });
  }
  let [best, top] = [0, -Infinity];
  for (const [label, one] of utils) {
    one.util += roundHalfEven(share * (one.votes - 1) * UNITS);
    one.util += bias[label] ?? 0;
    if (one.util > top || (one.util === top && isBefore(said, label, best))) [best, top] = [label, one.util];
  }
  let rest = (stage.n_labels - Math.max(utils.size, 1)) * UNITS;
  if (bias.length > 0) {
    rest = 0;
    let [rival, most] = [-1, -Infinity];
    for (const [label, own] of bias.entries()) {
      if (utils.has(label)) continue;
      rest += exponential(own / UNITS);
      if (own > most) [rival, most] = [label, own];
    }
    const support = supportOf(said, best);
    if (rival >= 0 && (most > top || (most === top && (support < 0 || (support === 0 && rival < best))))) {
      [best, top] = [rival, most];
      rest -= exponential(most / UNITS);
    }
  }
  if (top === -Infinity) top = 0;
  let total = UNITS;
  for (const [label, one] of utils) if (label !== best) total += exponential((one.util - top) / UNITS);
  return { label: best, p: UNITS / (rest > 0 ? total + rest * rawExponential(-top / UNITS) : total) };
}

/** What a tier's members said: those of a tier here by their outputs; a tier that shows none counts as one. */
export function saidBy(vote: Vote): Said {
  if (vote.said) return vote.said;
  if (vote.ballots.length === 0) return { labels: [vote.label], scores: [vote.score] };
  const missing = vote.nMembers - vote.ballots.length;
  return {
    labels: [...vote.ballots.map((ballot) => ballot.label), ...Array<number>(missing).fill(-1)],
    scores: [
      ...vote.ballots.map((ballot) => ballot.probabilities[ballot.label] ?? NaN),
      ...Array<number>(missing).fill(NaN),
    ],
  };
}

function worthOf(stage: Stage, at: number, score: number): number {
  const [b, grid] = [stage.b[at] ?? 0, stage.grids[at] ?? []];
  if (grid.length === 0 || Number.isNaN(score)) return b;
  const u = rank(score, grid);
  return b + (stage.a[at] ?? 0) * u + (stage.c[at] ?? 0) * (u * u);
}

/** Where the score lies among the quantiles, from -1/2 to 1/2; the middle of those that equal it. */
function rank(score: number, grid: readonly number[]): number {
  const last = grid.length - 1;
  const [left, right] = [grid.filter((mark) => mark < score).length, grid.filter((mark) => mark <= score).length];
  if (right === 0) return -0.5;
  const [below = 0, above = 0] = [grid[right - 1], grid[right]];
  if (left < right) return (left + right - 1) / 2 / last - 0.5;
  if (right > last) return 0.5;
  return (right - 1 + (score - below) / (above - below)) / last - 0.5;
}

function isBefore(said: Said, label: number, other: number): boolean {
  const [own, its] = [supportOf(said, label), supportOf(said, other)];
  return own > its || (own === its && label < other);
}

function supportOf(said: Said, label: number): number {
  let sum = 0;
  for (const [at, score] of said.scores.entries()) {
    if (said.labels[at] !== label || Number.isNaN(score)) continue;
    sum += roundHalfEven(Math.min(Math.max(score, -LARGEST_SCORE), LARGEST_SCORE) * UNITS);
  }
  return sum;
}

/** exp by additions and multiplications alone, which every machine rounds alike. */
function rawExponential(value: number): number {
  const x = Math.min(Math.max(value, -700), 700);
  const power = roundHalfEven(x * LOG2_E);
  const r = x - power * LN2_HIGH - power * LN2_LOW;
  let [high, n] = [0, 0];
  for (const factorial of FACTORIALS) high = n++ === 0 ? 1 / factorial : 1 / factorial + r * high;
  return (1 + r * (1 + r * (0.5 + r * high))) * 2 ** power;
}

function exponential(value: number): number {
  return roundHalfEven(rawExponential(value) * UNITS);
}

function roundHalfEven(value: number): number {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}
