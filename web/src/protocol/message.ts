/** The Open Inference Protocol's REST messages: a question with the captured bytes as binary data, and the answer. */
import type { Call, Said, Vote } from '../cascade/types';

export const LENGTH_HEADER = 'Inference-Header-Content-Length';

export interface Question {
  readonly body: Uint8Array;
  /** Of it, JSON. */
  readonly headerLength: number;
}

/** One example as one BYTES element: JSON, then the element's length (4 bytes, little-endian), then the element. */
export function question(id: string, captured: Uint8Array, asksMembers = false): Question {
  const size = 4 + captured.length;
  const input = { name: 'input', datatype: 'BYTES', shape: [1], parameters: { binary_data_size: size } };
  const parameters = asksMembers ? { parameters: { member_votes: true } } : {};
  const head = new TextEncoder().encode(JSON.stringify({ id, ...parameters, inputs: [input] }));
  const body = new Uint8Array(head.length + size);
  body.set(head, 0);
  new DataView(body.buffer).setUint32(head.length, captured.length, true);
  body.set(captured, head.length + 4);
  return { body, headerLength: head.length };
}

interface Output {
  readonly name: string;
  readonly data: readonly unknown[];
}

/**
 * The vote in an answer about one example.
 *
 * @throws RangeError what was expected of it
 */
export function readAnswer(text: string, nLabels: number, call: Call): Vote {
  let reply: { outputs?: unknown; parameters?: Record<string, unknown> };
  try {
    reply = JSON.parse(text) as typeof reply;
  } catch {
    throw new RangeError('expected JSON, got something else');
  }
  const outputs = new Map<string, readonly unknown[]>();
  for (const output of Array.isArray(reply.outputs) ? (reply.outputs as Partial<Output>[]) : []) {
    if (typeof output.name === 'string' && Array.isArray(output.data)) outputs.set(output.name, output.data);
  }
  const number = (name: string, at: number, low: number, high: number): number => {
    const value = outputs.get(name)?.[at];
    if (typeof value === 'number' && value >= low && value <= high) return value;
    throw new RangeError(`output ${name}: expected ${low} to ${high}, got ${JSON.stringify(value)}`);
  };
  const label = number('label', 0, 0, nLabels - 1);
  const asked = number('members', 0, 1, 2 ** 31);
  const nMembers = number('members', 1, asked, 2 ** 31);
  const score = outputs.get('score')?.[0];
  const tierVotes = outputs.get('tier_votes')?.map((vote) => (typeof vote === 'number' ? Math.fround(vote) : NaN));
  const exitTier = outputs.has('exit_tier') ? number('exit_tier', 0, 1, tierVotes?.length ?? 64) : 1;
  const degraded = outputs.get('degraded')?.[0];
  const serverS = reply.parameters?.['server_s'];
  return {
    label,
    count: Math.round(number('vote', 0, 0, 1) * asked),
    asked,
    nMembers,
    score: typeof score === 'number' ? Math.fround(score) : NaN,
    ballots: [],
    ...membersIn(outputs, nLabels),
    exitTier,
    ...(tierVotes ? { tierVotes } : {}),
    degraded: typeof degraded === 'string' && degraded !== '' ? degraded : null,
    call: { ...call, ...(typeof serverS === 'number' ? { serverMs: serverS * 1000 } : {}) },
  };
}

/** What each member said; none where the server does not show them. */
function membersIn(outputs: ReadonlyMap<string, readonly unknown[]>, nLabels: number): { said?: Said } {
  const [labels, scores] = [outputs.get('member_label'), outputs.get('member_score')];
  if (!labels || !scores) return {};
  const isLabel = (one: unknown): one is number => typeof one === 'number' && one >= -1 && one < nLabels;
  if (labels.length !== scores.length || !labels.every(isLabel)) {
    throw new RangeError('output member_label: expected a label and a score of each member, got others');
  }
  return { said: { labels, scores: scores.map((one) => (typeof one === 'number' ? Math.fround(one) : NaN)) } };
}
