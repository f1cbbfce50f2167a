/** Deferral rules: does this tier's answer stand, or does the example go on? As `coe/cascade/rule.py`. */
import { ceilTimes, compare, fraction, isAtLeast, minus, parseFraction, type Fraction } from './fraction';
import type { Said, Vote } from './types';

export interface Rule {
  /** The label is that of the members' mean output instead of the plurality. */
  readonly poolsScores: boolean;
  /** Votes that make the tier answer; null where the vote alone does not decide, so all are asked. */
  needed(nMembers: number): number | null;
  /** True where the answer stands. */
  exits(vote: { readonly count: number; readonly asked: number; readonly score: number }): boolean;
  /**
   * The vote with the label and score that follow from what its members and those before it said; none: its own stand.
   *
   * @throws TierError it has other members than the rule was made for
   */
  fuse?(tier: string, vote: Vote, before: readonly Said[]): Vote;
}

/** The answer stands where at least `theta` of the members agree; compared between integers. */
export function agreement(theta: Fraction): Rule {
  return {
    poolsScores: false,
    needed: (nMembers) => ceilTimes(theta, nMembers),
    exits: (vote) => isAtLeast(vote.count, vote.asked, theta),
  };
}

/** The answer stands where the highest probability of the mean output is at least `threshold` (single precision). */
export function confidence(threshold: number): Rule {
  return { poolsScores: true, needed: () => null, exits: (vote) => vote.score >= Math.fround(threshold) };
}

/** The last tier's rule: it answers, whatever its vote. */
export function always(poolsScores = false): Rule {
  return { poolsScores, needed: () => (poolsScores ? null : 0), exits: () => true };
}

export interface Agreed {
  readonly theta: Fraction;
  /** A decimal this little above a reachable fraction was probably meant as it. */
  readonly isNearMiss: boolean;
}

const NEAR_MISS = fraction(2, 100);
const ONE = fraction(1);
const SPELLINGS = 'write "unanimous", "majority", a fraction ("2/3"), a count ("2 of 3") or a decimal (0.6)';

/**
 * What an `agreement:` means for that many members.
 *
 * @throws RangeError what was expected, what was found, how to correct it
 */
export function parseAgreement(value: string | number, nMembers: number): Agreed {
  const text = String(value).trim().toLowerCase();
  if (text === 'unanimous') return { theta: ONE, isNearMiss: false };
  if (text === 'majority') return { theta: fraction(Math.floor(nMembers / 2) + 1, nMembers), isNearMiss: false };
  const counted = /^(\d+)\s+of\s+(\d+)$/.exec(text);
  if (counted) {
    const [count, of] = [Number(counted[1]), Number(counted[2])];
    if (of !== nMembers || count < 1 || count > of) {
      throw new RangeError(`expected a count of this tier's ${nMembers} members, got "${value}"`);
    }
    return { theta: fraction(count, of), isNearMiss: false };
  }
  const theta = parseFraction(text);
  if (theta === null) throw new RangeError(`expected an agreement, got "${value}" (${SPELLINGS})`);
  if (theta.numerator <= 0n || compare(theta, ONE) > 0) {
    throw new RangeError(`expected a share in (0, 1], got ${value} (${SPELLINGS})`);
  }
  return { theta, isNearMiss: !text.includes('/') && isNearMiss(theta, nMembers) };
}

function isNearMiss(theta: Fraction, nMembers: number): boolean {
  const needed = ceilTimes(theta, nMembers);
  const below = fraction(needed - 1, nMembers);
  const isReached = compare(fraction(needed, nMembers), theta) === 0;
  return needed > 1 && !isReached && compare(minus(theta, below), NEAR_MISS) <= 0;
}
