/** What a person sees of decisions: the answer, the votes, the running tally, the latest ones. */
import type { Decision, Pixels } from '../cascade/types';
import { drawPixels } from '../models/image';
import type { Kept } from '../queue/queue';
import type { Decided, Device } from './device';
import { byId, make } from './dom';
import type { Tally } from './tally';
import { ballotText, costText, laterText, placeOf, SIGNS, tallyCards, whereText, whyText } from './words';

const N_RECENT = 8;

/** Before anything is decided, and after what was drawn is cleared. */
export function showNothing(text = ''): void {
  showWithoutVotes('?', 'Nothing decided yet', text);
}

/** The answer so far, while the cloud is asked. */
export function showDeferred(soFar: Decision, device: Device): void {
  showSaid(device.bundle.labels[soFar.label] ?? '?', 'asked');
  byId('where').textContent = 'The members disagree';
  byId('why').textContent = 'Asking the cloud …';
  showVotes(soFar, device);
  byId('cost').textContent = '';
}

export function showDecided({ decision, latencyMs, seen }: Decided, device: Device): void {
  const place = placeOf(decision, device.nTiersHere);
  showSaid(device.bundle.labels[decision.label] ?? '?', place);
  byId('where').textContent = `${SIGNS[place]} ${whereText(decision, device.nTiersHere)}`;
  byId('why').textContent = whyText(decision, device.nTiersHere);
  showVotes(decision, device);
  byId('cost').textContent = costText(latencyMs, decision);
  showSeen(seen);
}

/** The answer that is shown has been confirmed or corrected, or never will be. */
export function showLater(kept: Kept, device: Device): void {
  const { labels } = device.bundle;
  const place = placeOf(kept, device.nTiersHere);
  showSaid(labels[kept.label] ?? '?', place);
  byId('where').textContent = `${SIGNS[place]} ${kept.givenUp === undefined ? 'Asked again' : 'Not asked again'}`;
  byId('why').textContent = `${laterText(kept, labels)}.`;
}

function showSeen(pixels: Pixels): void {
  drawPixels(byId<HTMLCanvasElement>('seen-pixels'), pixels);
  byId('seen').hidden = false;
}

export function showFailed(text: string): void {
  showWithoutVotes('–', 'No answer', text);
}

function showWithoutVotes(said: string, where: string, why: string): void {
  showSaid(said, 'none');
  byId('where').textContent = where;
  byId('why').textContent = why;
  byId('votes').replaceChildren();
  byId('cost').textContent = '';
  byId('seen').hidden = true;
}

export function showTally(tally: Tally): void {
  byId('since').textContent = `since ${timeText(tally.since)}, when this page was opened`;
  byId('tally').replaceChildren(
    ...tallyCards(tally).map(({ name, value, more }) =>
      make('div', { className: 'card' }, [
        make('dt', { text: name }),
        make('dd', { className: 'value', text: value }),
        make('dd', { className: 'more', text: more }),
      ]),
    ),
  );
}

export function showRecent(kept: readonly Kept[], device: Device): void {
  byId('recent').replaceChildren(
    ...kept.slice(0, N_RECENT).map((one) => {
      const place = placeOf(one, device.nTiersHere);
      const label = device.bundle.labels[one.label] ?? '?';
      const item = make('li', {}, [
        make('b', { text: label }),
        make('span', { text: `${SIGNS[place]} ${recentText(one, place, device)}` }),
        make('time', { text: timeText(one.at) }),
      ]);
      item.dataset['id'] = one.id;
      return item;
    }),
  );
}

export function showWaiting(count: number): void {
  const examples = count === 1 ? 'example waits' : 'examples wait';
  byId('waiting').textContent = count === 0 ? 'Nothing waits for the cloud.' : `${count} ${examples} for the cloud.`;
}

function recentText(kept: Kept, place: string, device: Device): string {
  if (kept.correctedAt !== null || kept.givenUp !== undefined) return laterText(kept, device.bundle.labels);
  return place === 'here' ? 'on this phone' : place === 'cloud' ? 'in the cloud' : 'this phone alone';
}

function timeText(at: number): string {
  return new Date(at).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });
}

function showSaid(text: string, state: string): void {
  const said = byId('said');
  said.textContent = text;
  said.dataset['state'] = state;
  said.classList.toggle('long', text.length > 3);
}

function showVotes(decision: Decision, device: Device): void {
  const { labels } = device.bundle;
  const items: HTMLElement[] = [];
  for (const [at, ballots] of decision.ballots.entries()) {
    const tier = device.cascade.tiers[at];
    for (const ballot of ballots) {
      const share = ballot.probabilities[ballot.label] ?? 0;
      const meter = make('meter');
      meter.max = 1;
      meter.value = share;
      meter.setAttribute('aria-hidden', 'true');
      const isFor = ballot.label === decision.label;
      const sign = make('span', { className: 'sign', text: isFor ? '✓' : '✕' });
      sign.setAttribute('aria-label', isFor ? 'for the answer:' : 'against it:');
      sign.setAttribute('role', 'img');
      items.push(make('li', {}, [sign, make('span', { text: ballotText(ballot, labels) }), meter]));
    }
    const unasked = device.members
      .filter((member) => tier !== undefined && 'members' in tier && (tier.members as unknown[]).includes(member))
      .slice(ballots.length);
    for (const member of unasked) {
      const sign = make('span', { className: 'sign', text: '·' });
      sign.setAttribute('aria-hidden', 'true');
      items.push(
        make('li', { className: 'soft' }, [
          sign,
          make('span', { text: `${member.name} was not asked: it was settled` }),
        ]),
      );
    }
  }
  byId('votes').replaceChildren(...items);
}
