/** Algorithm 1: tiers in turn, each seeing only what the one before it deferred. As `coe/cascade/cascade.py`. */
import { saidBy } from './calibrated';
import { TierError } from './errors';
import { always, type Rule } from './rule';
import type { Tier } from './tier';
import { addedCalls, NO_LABEL, type Call, type Decision, type Example, type Vote } from './types';

interface Visit {
  readonly tier: Tier;
  readonly firstTier: number;
  vote: Vote;
  timeMs: number;
}

/** Tiers from the cheapest to the one that always answers. */
export class Cascade {
  private readonly rules: readonly Rule[];

  /**
   * @param tiers at least one; the last answers whatever its vote
   * @param keepLastAnswer where a tier gives no answer, the tier before it has the last word, and `degraded` says why;
   *   otherwise the error is thrown
   */
  constructor(
    readonly tiers: readonly Tier[],
    readonly keepLastAnswer = true,
  ) {
    const last = tiers[tiers.length - 1];
    if (!last) throw new RangeError('a cascade needs at least one tier, got none');
    const lastRule = last.rule.fuse ? last.rule : always(last.rule.poolsScores);
    this.rules = [...tiers.slice(0, -1).map((tier) => tier.rule), lastRule];
  }

  /** Tiers in all; a remote one counts as the tiers its server is known to hold. */
  get nTiers(): number {
    return this.tiers.reduce((sum, tier) => sum + tier.nTiers, 0);
  }

  /**
   * The example's answer.
   *
   * @param onDeferred called with the answer so far, and awaited, before the example goes on to another tier
   * @throws TierError the first tier gave none, or a later one did not and `keepLastAnswer` is off
   */
  async decide(example: Example, onDeferred?: (soFar: Decision) => unknown): Promise<Decision> {
    const visits: Visit[] = [];
    let failure: TierError | null = null;
    for (const [number, tier] of this.tiers.entries()) {
      const rule = this.rules[number] ?? tier.rule;
      const before = visits[visits.length - 1];
      if (before && before.vote.label !== NO_LABEL) await onDeferred?.(decisionOf(example.id, visits, null));
      const started = performance.now();
      try {
        const vote = fused(rule, tier.name, await tier.vote(example, rule), visits);
        visits.push({ tier, firstTier: nextTier(before), vote, timeMs: performance.now() - started });
        if (vote.label !== NO_LABEL && rule.exits(vote)) break;
      } catch (error) {
        if (!(error instanceof TierError) || !before || !this.keepLastAnswer) throw error;
        failure = error;
        break;
      }
    }
    if (failure !== null) await this.complete(example, visits, failure);
    return decisionOf(example.id, visits, await this.lastThatVoted(example, visits, failure));
  }

  /** Leave the visits up to the last tier with a label. Returns why it has the last word; null: it is its turn. */
  private async lastThatVoted(example: Example, visits: Visit[], failure: TierError | null): Promise<TierError | null> {
    for (let last = visits[visits.length - 1]; last?.vote.label === NO_LABEL; last = visits[visits.length - 1]) {
      const reasons = last.vote.ballots.map((ballot) => ballot.failure).join('; ');
      failure = new TierError(last.tier.name, 'failed', `no member voted: ${reasons}`);
      visits.pop();
      if (visits.length === 0 || !this.keepLastAnswer) throw failure;
      await this.complete(example, visits, failure);
    }
    return failure;
  }

  /** The last tier visited has the last word, with all its members asked. */
  private async complete(example: Example, visits: readonly Visit[], error: TierError): Promise<void> {
    const last = visits[visits.length - 1];
    if (!last) return;
    await fallBack(example, last, error);
    const own = this.rules[visits.length - 1] ?? last.tier.rule;
    last.vote = fused(own, last.tier.name, last.vote, visits.slice(0, -1));
  }
}

function fused(rule: Rule, tier: string, vote: Vote, before: readonly Visit[]): Vote {
  const said = before.map((visit) => saidBy(visit.vote));
  return rule.fuse ? rule.fuse(tier, vote, said) : vote;
}

/** The tier before has the last word, with all its members asked. */
async function fallBack(example: Example, before: Visit, error: TierError): Promise<void> {
  const started = performance.now();
  const vote = await before.tier.complete(example, before.vote);
  const call = addedCalls(
    [before.vote.call, error.call].filter((one): one is Call => one !== null && one !== undefined),
  );
  before.vote = call === null ? vote : { ...vote, call };
  before.timeMs += performance.now() - started;
}

/** Number of the tier after this one: a tier may be a cascade of several itself. */
function nextTier(visit: Visit | undefined): number {
  return visit === undefined ? 1 : visit.firstTier + (visit.vote.tierVotes?.length ?? 1);
}

function decisionOf(id: string, visits: readonly Visit[], failure: TierError | null): Decision {
  const last = visits[visits.length - 1];
  if (!last) throw new Error('a decision needs a visit');
  const vote = last.vote;
  return {
    id,
    label: vote.label,
    exitTier: last.firstTier - 1 + (vote.exitTier ?? 1),
    vote: vote.count / vote.asked,
    score: vote.score,
    asked: vote.asked,
    nMembers: vote.nMembers,
    tierVotes: visits.flatMap((visit) => votesIn(visit.vote)),
    tierTimesMs: visits.map((visit) => visit.timeMs),
    degraded: failure === null ? (vote.degraded ?? null) : `${failure.reason}: ${failure.message}`,
    canBeCorrected: failure?.passes ?? false,
    call: addedCalls(visits.map((visit) => visit.vote.call).filter((call): call is Call => call !== undefined)),
    ...(visits.some((visit) => visit.vote.said) ? { said: visits.map((visit) => saidBy(visit.vote)) } : {}),
    ballots: visits.map((visit) => visit.vote.ballots).filter((ballots) => ballots.length > 0),
  };
}

function votesIn(vote: Vote): readonly number[] {
  return vote.tierVotes?.filter((share) => !Number.isNaN(share)) ?? [vote.count / vote.asked];
}
