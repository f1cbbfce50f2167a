/** What people read: numbers and outcomes in words. Pure, so that tests can read them too. */
import { NO_LABEL, type Ballot, type Decision } from '../cascade/types';
import type { InputSpec } from '../models/input-spec';
import type { Kept } from '../queue/queue';
import type { Tally } from './tally';

export type Place = 'here' | 'cloud' | 'alone';

export function placeOf(decision: Pick<Decision, 'exitTier' | 'degraded'>, nTiersHere: number): Place {
  if (decision.exitTier > nTiersHere) return 'cloud';
  return decision.degraded === null ? 'here' : 'alone';
}

export const SIGNS: Readonly<Record<Place, string>> = { here: '●', cloud: '☁', alone: '◐' };

export function whereText(decision: Decision, nTiersHere: number): string {
  const place = placeOf(decision, nTiersHere);
  if (place === 'here') return 'Decided on this phone';
  if (place === 'cloud') return `Decided in the cloud, tier ${decision.exitTier}`;
  return 'Decided by this phone alone';
}

export function whyText(decision: Decision, nTiersHere: number): string {
  const votes = `${Math.round(decision.vote * decision.asked)} of ${decision.asked}`;
  const place = placeOf(decision, nTiersHere);
  if (place === 'here') {
    const rest = decision.nMembers - decision.asked;
    return `${votes} members agreed${rest > 0 ? `; ${rest} more could not have changed it` : ''}. Nothing was sent.`;
  }
  if (place === 'cloud') {
    const reason = decision.degraded === null ? '' : ` It had to fall back: ${decision.degraded}.`;
    return `The members here disagreed. In the cloud ${votes} agreed.${reason}`;
  }
  const later = decision.canBeCorrected ? ' It will be asked again.' : '';
  return `The members disagreed and the cloud gave no answer (${reasonOf(decision)}).${later}`;
}

export function costText(latencyMs: number, decision: Decision): string {
  const { call } = decision;
  const sent = call && call.bytesSent > 0 ? `${bytesText(call.bytesSent)} sent` : 'nothing sent';
  const away = call && call.callMs > 0 ? `, ${msText(call.callMs)} of it for the cloud` : '';
  return `${msText(latencyMs)} in all${away}; ${sent}.`;
}

/** What became of a decision of this phone alone, once the cloud was asked again; a label's name goes with it. */
export function laterText(kept: Kept, labels: readonly string[]): string {
  if (kept.givenUp !== undefined) return `this phone alone, for good: ${kept.givenUp}`;
  const before = kept.before === null ? '' : `, was ${labels[kept.before] ?? '?'}`;
  return kept.before === kept.label ? 'confirmed by the cloud' : `corrected by the cloud${before}`;
}

/** What kind of picture a task takes. */
export function wantedText({ size: [height, width], channels, invert }: InputSpec): string {
  const ground = invert === 'when-light' ? ', light on a dark ground (dark on light is inverted)' : '';
  return `The models see ${width} × ${height} ${channels === 1 ? 'grey' : 'colour'} pixels${ground}.`;
}

/** One line for each member of a tier here: what it said, how sure it was. */
export function ballotText(ballot: Ballot, labels: readonly string[]): string {
  if (ballot.label === NO_LABEL) return `${ballot.member} failed, and does not vote`;
  const share = ballot.probabilities[ballot.label] ?? 0;
  return `${ballot.member} said ${labels[ballot.label] ?? '?'}, ${percentText(share)} sure`;
}

export interface Card {
  readonly name: string;
  readonly value: string;
  readonly more: string;
}

export function tallyCards(tally: Tally): Card[] {
  const { count, kept, degraded, bytesSent, bytesOfAll } = tally;
  if (count === 0) {
    return [
      { name: 'Kept on the phone', value: '–', more: 'nothing decided yet' },
      { name: 'Bytes saved', value: '–', more: 'against sending all' },
      { name: 'Mean time', value: '–', more: 'per example' },
    ];
  }
  const saved = bytesOfAll - bytesSent;
  return [
    {
      name: 'Kept on the phone',
      value: percentText(kept / count),
      more: `${kept} of ${count}${degraded > 0 ? `, ${degraded} by it alone` : ''}`,
    },
    {
      name: 'Bytes saved',
      value: bytesText(Math.max(saved, 0)),
      more: bytesOfAll > 0 ? `${percentText(Math.max(saved, 0) / bytesOfAll)} of sending all` : '',
    },
    { name: 'Mean time', value: msText(tally.latencyMs / count), more: `over ${count}` },
  ];
}

export function msText(ms: number): string {
  if (ms < 0.095) return `${(ms * 1000).toFixed(0)} µs`;
  if (ms < 9.95) return `${ms.toFixed(1)} ms`;
  return ms < 999.5 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

export function bytesText(bytes: number): string {
  if (bytes < 1000) return `${bytes.toFixed(0)} B`;
  if (bytes < 999_500) return `${(bytes / 1000).toFixed(bytes < 9950 ? 1 : 0)} kB`;
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

export function percentText(share: number): string {
  const percent = share * 100;
  if (percent > 99 && percent < 100) return `${Math.min(percent, 99.9).toFixed(1)}%`;
  return `${percent.toFixed(0)}%`;
}

function reasonOf(decision: Decision): string {
  return decision.degraded?.split(':')[0] ?? '';
}
