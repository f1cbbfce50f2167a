/**
 * Counting votes: plurality, ties, and when the outcome of a vote is settled.
 *
 * Ties go to the higher mean score, then to the lower label. No result depends on the order of the members. The same
 * rule as `coe/cascade/vote.py`; `vectors/` holds both to it.
 */
import { NO_LABEL } from './types';

/** Scores are summed as integers in these units: exact, so that the order of members cannot turn a tie. */
const SCORE_UNITS = 2 ** 40;

export interface Plurality {
  readonly label: number;
  readonly count: number;
  readonly score: number;
}

const NO_VOTE: Plurality = { label: NO_LABEL, count: 0, score: NaN };

/** Votes of the leading label and of the runner-up (equal in a tie). */
export function leaders(ballots: readonly number[]): [top: number, runnerUp: number] {
  const votes = [...counted(ballots).values()].sort((a, b) => b - a);
  return [votes[0] ?? 0, votes[1] ?? 0];
}

/**
 * Whether more votes cannot change the outcome: for a tier that answers, its label and its decision; for one that
 * defers, that no label can reach `needed` any more.
 *
 * @param left members not yet asked
 * @param needed votes that make the tier answer; 0 where it always answers
 */
export function isSettled(top: number, runnerUp: number, left: number, needed: number): boolean {
  const answers = top >= needed && top > runnerUp + left;
  const defers = top + left < needed;
  return answers || defers;
}

/** The label with the most votes, the votes for it, and the mean score all members that voted give it. */
export function plurality(ballots: readonly number[], outputs: readonly Float32Array[]): Plurality {
  if (ballots.length === 0) return NO_VOTE;
  const votes = counted(ballots);
  const count = Math.max(...votes.values());
  const leading = [...votes.keys()].filter((label) => votes.get(label) === count).sort((a, b) => a - b);
  let [label, best] = [-1, -1];
  for (const candidate of leading) {
    const units = unitsOf(outputs, candidate);
    if (units > best) [label, best] = [candidate, units];
  }
  return { label, count, score: Math.fround(best / outputs.length / SCORE_UNITS) };
}

/** Label and probability of the members' mean output, for the confidence rule. */
export function pool(ballots: readonly number[], outputs: readonly Float32Array[]): Plurality {
  if (ballots.length === 0) return NO_VOTE;
  let [label, best] = [-1, -1];
  for (let candidate = 0; candidate < (outputs[0]?.length ?? 0); candidate++) {
    const units = unitsOf(outputs, candidate);
    if (units > best) [label, best] = [candidate, units];
  }
  const count = ballots.filter((ballot) => ballot === label).length;
  return { label, count, score: Math.fround(best / outputs.length / SCORE_UNITS) };
}

/**
 * The label a member votes for: its highest probability, the lowest label of equals.
 *
 * @throws RangeError its output is not numbers
 */
export function topLabel(output: Float32Array): number {
  let best = 0;
  for (let label = 0; label < output.length; label++) {
    const value = output[label] ?? NaN;
    if (!Number.isFinite(value)) throw new RangeError('its output is not a number (NaN or infinity)');
    if (value > (output[best] ?? 0)) best = label;
  }
  return best;
}

function counted(ballots: readonly number[]): Map<number, number> {
  const votes = new Map<number, number>();
  for (const label of ballots) votes.set(label, (votes.get(label) ?? 0) + 1);
  return votes;
}

function unitsOf(outputs: readonly Float32Array[], label: number): number {
  return outputs.reduce((sum, output) => sum + roundHalfEven((output[label] ?? 0) * SCORE_UNITS), 0);
}

/** As Python and NumPy round; single-precision scores above 2**-16 are whole numbers of units anyway. */
function roundHalfEven(value: number): number {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}
