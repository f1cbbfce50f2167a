/** Everything that can answer is a tier; the cascade does not know where one runs. As `coe/cascade/tier.py`. */
import type { Rule } from './rule';
import { InputError } from './errors';
import { NO_LABEL, type Ballot, type Example, type Pixels, type Vote } from './types';
import { isSettled, leaders, plurality, pool, topLabel } from './vote';

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
 *
 * A member that throws, or whose output is not numbers, does not vote: it was asked, and agrees with nobody; label and
 * score are those of the members that voted.
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
      const said = await saidBy(member, example.pixels);
      ballots.push({ member: member.name, ...said, timeMs: performance.now() - started });
      const [top, runnerUp] = leaders(cast(ballots).map((ballot) => ballot.label));
      if (needed !== null && isSettled(top, runnerUp, this.members.length - ballots.length, needed)) break;
    }
    return ballots;
  }

  private tally(ballots: readonly Ballot[], poolsScores: boolean): Vote {
    const labels = cast(ballots).map((ballot) => ballot.label);
    const outputs = cast(ballots).map((ballot) => ballot.probabilities);
    const outcome = poolsScores ? pool(labels, outputs) : plurality(labels, outputs);
    return { ...outcome, asked: ballots.length, nMembers: this.members.length, ballots };
  }
}

function cast(ballots: readonly Ballot[]): Ballot[] {
  return ballots.filter((ballot) => ballot.label !== NO_LABEL);
}

async function saidBy(member: Member, pixels: Pixels): Promise<Pick<Ballot, 'label' | 'probabilities' | 'failure'>> {
  try {
    const probabilities = await member.predict(pixels);
    return { label: topLabel(probabilities), probabilities };
  } catch (error) {
    if (error instanceof InputError) throw error; // the example's fault
    return { label: NO_LABEL, probabilities: new Float32Array(), failure: `member ${member.name}: ${String(error)}` };
  }
}
