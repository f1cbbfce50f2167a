/** Everything that can answer is a tier; the cascade does not know where one runs. As `coe/cascade/tier.py`. */
import type { Rule } from './rule';
import type { Ballot, Example, Pixels, Vote } from './types';
import { isSettled, leaders, plurality, pool, topLabel } from './vote';

/** Of a member that does not vote. */
const NO_LABEL = -1;

/** One model as a member of a tier. */
export interface Member {
  readonly name: string;
  /** The probability of each label. */
  predict(pixels: Pixels): Promise<Float32Array>;
}

export interface Tier {
  readonly name: string;
  readonly rule: Rule;
  /** 1, or more where the tier is a whole cascade. */
  readonly nTiers: number;
  /**
   * The tier's vote, as far as `rule` needs it.
   *
   * @throws TierError no answer; the cascade decides what then
   */
  vote(example: Example, rule: Rule): Promise<Vote>;
  /** The same vote with every member asked: for an example whose local answer is to stand after all. */
  complete(example: Example, vote: Vote): Promise<Vote>;
}

/**
 * An ensemble of members on this device, asked one after another until the outcome is settled. The decision is that
 * of asking everybody, and so is the label wherever the tier answers; count, asked and score are over those asked.
 */
export class LocalTier implements Tier {
  readonly nTiers = 1;

  constructor(
    readonly name: string,
    readonly members: readonly Member[],
    readonly rule: Rule,
    /** False: every member is asked, always. */
    readonly early = true,
  ) {
    if (members.length === 0) throw new RangeError(`tier ${name}: expected at least one member, got none`);
  }

  async vote(example: Example, rule: Rule): Promise<Vote> {
    const needed = this.early && !rule.poolsScores ? rule.needed(this.members.length) : null;
    return this.tally(await this.ask(example, [], needed), rule.poolsScores);
  }

  async complete(example: Example, vote: Vote): Promise<Vote> {
    if (vote.asked === this.members.length) return vote;
    return this.tally(await this.ask(example, vote.ballots, null), false);
  }

  /** Members' answers, from the first that has not been asked, until it is settled by `needed`. */
  private async ask(example: Example, known: readonly Ballot[], needed: number | null): Promise<Ballot[]> {
    const ballots = [...known];
    for (const member of this.members.slice(known.length)) {
      const started = performance.now();
      const probabilities = await member.predict(example.pixels);
      const label = topLabel(probabilities, member.name);
      ballots.push({ member: member.name, label, probabilities, timeMs: performance.now() - started });
      const [top, runnerUp] = leaders(ballots.map((ballot) => ballot.label));
      if (needed !== null && isSettled(top, runnerUp, this.members.length - ballots.length, needed)) break;
    }
    return ballots;
  }

  private tally(ballots: readonly Ballot[], poolsScores: boolean): Vote {
    const labels = ballots.map((ballot) => ballot.label);
    const outputs = ballots.map((ballot) => ballot.probabilities);
    const outcome = poolsScores ? pool(labels, outputs) : plurality(labels, outputs);
    return { ...outcome, asked: ballots.length, nMembers: this.members.length, ballots };
  }
}
