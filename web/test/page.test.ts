/** What people read, and what the pad hands over. */
import { expect, test } from 'vitest';
import type { Decision } from '../src/cascade/types';
import { added, empty } from '../src/page/tally';
import {
  ballotText,
  bytesText,
  costText,
  msText,
  percentText,
  placeOf,
  tallyCards,
  whereText,
  whyText,
} from '../src/page/words';
import { inkOf } from '../src/sources/pad';

const HERE: Decision = {
  id: 'a',
  label: 1,
  exitTier: 1,
  vote: 1,
  score: 0.9,
  asked: 2,
  nMembers: 3,
  tierVotes: [1],
  tierTimesMs: [1],
  degraded: null,
  canBeCorrected: false,
  call: null,
  ballots: [],
};
const CALL = { callMs: 20, bytesSent: 400, bytesReceived: 300 };
const CLOUD: Decision = { ...HERE, exitTier: 3, asked: 3, call: CALL };
const ALONE: Decision = { ...HERE, vote: 0.5, degraded: 'timeout: tier cloud: late', canBeCorrected: true, call: CALL };

test('it is said where a decision was made, and why', () => {
  expect([HERE, CLOUD, ALONE].map((one) => placeOf(one, 1))).toEqual(['here', 'cloud', 'alone']);
  expect(whereText(CLOUD, 1)).toBe('Decided in the cloud, tier 3');
  expect(whyText(HERE, 1)).toBe('2 of 2 members agreed; 1 more could not have changed it. Nothing was sent.');
  expect(whyText(ALONE, 1)).toContain('no answer (timeout). It will be asked again.');
  expect(costText(25, CLOUD)).toBe('25 ms in all, 20 ms of it for the cloud; 400 B sent.');
});

test('the tally counts what stayed, and what sending everything would have cost', () => {
  let tally = empty(7);
  for (const one of [HERE, HERE, CLOUD, ALONE]) tally = added(tally, one, 1, 10, 500);
  expect(tally).toEqual({ since: 7, count: 4, kept: 2, degraded: 1, latencyMs: 40, bytesSent: 800, bytesOfAll: 2000 });
  expect(tallyCards(tally).map((card) => card.value)).toEqual(['50%', '1.2 kB', '10 ms']);
  expect(tallyCards(empty())[0]?.value).toBe('–');
});

test('numbers have the digits they deserve', () => {
  expect([0.05, 0.1, 9.94, 9.96, 999.6].map(msText)).toEqual(['50 µs', '0.1 ms', '9.9 ms', '10 ms', '1.0 s']);
  expect([999, 1000, 12_345, 999_600].map(bytesText)).toEqual(['999 B', '1.0 kB', '12 kB', '1.0 MB']);
  expect([0.9999, 1, 0.501].map(percentText)).toEqual(['99.9%', '100%', '50%']);
  const ballot = { member: 'stroke', label: 1, probabilities: Float32Array.from([0.25, 0.75]), timeMs: 1 };
  expect(ballotText(ballot, ['zero', 'one'])).toBe('stroke said one, 75% sure');
});

test('ink is found with its box and its centre of mass', () => {
  const rgba = new Uint8ClampedArray(4 * 5 * 4);
  expect(inkOf(rgba, 5, 4)).toBeNull();
  rgba[4 * (1 * 5 + 2)] = 255; // row 1, column 2
  rgba[4 * (3 * 5 + 2)] = 255; // row 3, column 2
  expect(inkOf(rgba, 5, 4)).toEqual({ left: 2, top: 1, width: 1, height: 3, x: 2.5, y: 2.5 });
});
