/** Questions and answers against `vectors/protocol.json`; deadlines and retries against a server that is made up. */
import { expect, test, vi } from 'vitest';
import { TierError } from '../src/cascade/errors';
import { question, readAnswer } from '../src/protocol/message';
import { RemoteTier } from '../src/protocol/remote';
import vectors from '../vectors/protocol.json';
import { bytes } from './packed';

const ANSWER = vectors.answers.find((one) => one.degraded === null)?.text ?? '';

/** A tier whose server gives these, one after the other; what it was asked is in `calls`. */
function tierWith(...answers: (Response | Error)[]): { tier: RemoteTier; calls: RequestInit[] } {
  const calls: RequestInit[] = [];
  const fetched = vi.fn((_url: string, init: RequestInit) => {
    const answer = answers[calls.length];
    calls.push(init);
    return answer instanceof Response ? Promise.resolve(answer) : Promise.reject(answer ?? new Error('no more'));
  });
  const options = { model: 'm', fingerprint: 'f', nLabels: 4, deadlineMs: 1000, fetch: fetched as typeof fetch };
  return { tier: new RemoteTier('cloud', options), calls };
}

async function refusal(tier: RemoteTier, withinMs = 1000): Promise<TierError> {
  const thrown: unknown = await tier.ask('x', new Uint8Array(3), performance.now() + withinMs).catch((e: unknown) => e);
  expect(thrown).toBeInstanceOf(TierError);
  return thrown as TierError;
}

const away = (): Error => new TypeError('Failed to fetch');

test('questions are those that the server reads, byte for byte', () => {
  for (const one of vectors.questions) {
    const asked = question(one.id, bytes(one.captured));
    expect(asked.body).toEqual(bytes(one.body));
    expect(asked.headerLength).toBe(one.header_length);
  }
});

test('an answer is the vote that a Pi reads in the same answer over gRPC', () => {
  for (const one of vectors.answers) {
    const vote = readAnswer(one.text, 4, { callMs: 1, bytesSent: 2, bytesReceived: 3 });
    expect([vote.label, vote.count, vote.asked, vote.nMembers, vote.score]).toEqual(one.vote);
    expect(vote.exitTier).toBe(one.exit_tier);
    expect(vote.tierVotes ?? null).toEqual(one.tier_votes?.map((share) => share ?? NaN) ?? null);
    expect(vote.degraded).toBe(one.degraded);
    expect(vote.call?.serverMs).toBeCloseTo(one.server_s * 1000, 9);
  }
});

test.each([
  '',
  '{}',
  '[]',
  '{"outputs": 3}',
  ANSWER.replace(/"data":\[\d/, '"data":[9'),
  ANSWER.replace('members', 'm'),
])('what is no answer is refused: %j', (text) => {
  expect(() => readAnswer(text, 4, { callMs: 0, bytesSent: 0, bytesReceived: 0 })).toThrow(RangeError);
});

test('a call says how long it may take, what is JSON in it, and which task it is about', async () => {
  const { tier, calls } = tierWith(new Response(ANSWER));
  const vote = await tier.ask('x', new Uint8Array(3), performance.now() + 500);
  expect(vote.call?.bytesSent).toBe(tier.bytesOf(question('x', new Uint8Array(3)).body.length));
  const headers = calls[0]?.headers as Record<string, string>;
  expect(Number(headers['Request-Timeout'])).toBeGreaterThan(0.3);
  expect(Number(headers['Request-Timeout'])).toBeLessThanOrEqual(0.5);
  expect(headers['Inference-Header-Content-Length']).toMatch(/^\d+$/);
});

test('a server that is away for a moment is asked once more', async () => {
  const { tier, calls } = tierWith(away(), new Response(ANSWER));
  await tier.ask('x', new Uint8Array(3), performance.now() + 1000);
  expect(calls.length).toBe(2);
});

test('there is one retry, no more', async () => {
  const { tier, calls } = tierWith(away(), away(), new Response(ANSWER));
  const error = await refusal(tier);
  expect([error.reason, error.passes, calls.length]).toEqual(['unavailable', true, 2]);
});

test('a retry that would come too late is not made', async () => {
  const { tier, calls } = tierWith(away(), new Response(ANSWER));
  expect((await refusal(tier, 30)).reason).toBe('unavailable');
  expect(calls.length).toBe(1);
});

test('after a call that took most of the time there is no second one', async () => {
  const calls: string[] = [];
  const slow = (url: string): Promise<Response> => {
    calls.push(url);
    return new Promise((_, reject) =>
      setTimeout(() => {
        reject(away());
      }, 330),
    ); // 270 of 600 ms are left
  };
  const options = { model: 'm', fingerprint: 'f', nLabels: 4, deadlineMs: 1000, fetch: slow as typeof fetch };
  expect((await refusal(new RemoteTier('cloud', options), 600)).reason).toBe('unavailable');
  expect(calls.length).toBe(1);
});

test('an overloaded server is asked again when it says so, if that is soon enough', async () => {
  const later = { status: 429, headers: { 'retry-after': '1' } };
  const { tier, calls } = tierWith(new Response('{"error":"full"}', later), new Response(ANSWER));
  const error = await refusal(tier);
  expect([error.reason, error.message, calls.length]).toEqual(['overloaded', 'tier cloud: full', 1]);
});

test.each([
  [400, 'rejected', false],
  [404, 'rejected', false],
  [401, 'rejected', true],
  [504, 'timeout', true],
])('status %i is %s, and whether asking later helps: %s', async (status, reason, passes) => {
  const { tier, calls } = tierWith(new Response('{"error":"no"}', { status }), new Response(ANSWER));
  const error = await refusal(tier);
  expect([error.reason, error.passes, calls.length]).toEqual([reason, passes, 1]);
});

test('a deadline that has passed asks nobody', async () => {
  const { tier, calls } = tierWith(new Response(ANSWER));
  expect((await refusal(tier, -1)).reason).toBe('timeout');
  expect(calls.length).toBe(0);
});

test('a server that never answers is given up at the deadline', async () => {
  const silent = (_: string, init: RequestInit): Promise<Response> =>
    new Promise((_resolve, reject) => {
      init.signal?.addEventListener('abort', () => {
        reject(init.signal?.reason as Error);
      });
    });
  const options = { model: 'm', fingerprint: 'f', nLabels: 4, deadlineMs: 50, fetch: silent as typeof fetch };
  const tier = new RemoteTier('cloud', options);
  expect((await refusal(tier, 50)).reason).toBe('timeout');
});
