/** A tier on the server the page came from, over the protocol's REST twin: a deadline, and one retry that still fits. */
import { TierError } from '../cascade/errors';
import { always, type Rule } from '../cascade/rule';
import type { Tier } from '../cascade/tier';
import type { Example, Vote } from '../cascade/types';
import { LENGTH_HEADER, question, readAnswer } from './message';

const PAUSE_MS = 60; // before the retry
const USUAL_HEAD = 620; // bytes of method, path and headers over HTTP/1.1, without what is this call's own
const MOST_WAIT_MS = 500; // that a retry waits where an overloaded server says when to come again

export interface RemoteOptions {
  readonly model: string;
  /** Of the task: another one is refused by the server. */
  readonly fingerprint: string;
  readonly nLabels: number;
  readonly deadlineMs: number;
  /** Where the server is; "" where the page came from. */
  readonly origin?: string;
  /** By which its answer counts; none: it stands as it is. */
  readonly rule?: Rule;
  /** Asked for each call: a token, where the server wants one. */
  readonly headers?: () => Record<string, string>;
  readonly fetch?: typeof fetch;
  /** The server does not know who asks. */
  readonly onIdentity?: () => void;
}

interface Tried {
  readonly error: TierError;
  readonly retryAfterMs: number | null;
}

export class RemoteTier implements Tier {
  readonly rule: Rule;
  nTiers = 1;
  /** Calls of live examples under way. */
  nUnderWay = 0;

  constructor(
    readonly name: string,
    readonly options: RemoteOptions,
  ) {
    this.rule = options.rule ?? always();
  }

  async vote(example: Example): Promise<Vote> {
    const end = Math.min(performance.now() + this.options.deadlineMs, example.deadline);
    this.nUnderWay += 1;
    try {
      return await this.ask(example.id, (await example.toSend?.()) ?? example.captured, end);
    } finally {
      this.nUnderWay -= 1;
    }
  }

  complete(_example: Example, vote: Vote): Promise<Vote> {
    return Promise.resolve(vote);
  }

  /**
   * @param end `performance.now()` millisecond by which the answer is wanted
   * @throws TierError by what can be done about it
   */
  async ask(id: string, captured: Uint8Array, end: number): Promise<Vote> {
    const started = performance.now();
    const first = await this.askOnce(id, captured, end);
    if (!('error' in first)) return first;
    const took = performance.now() - started;
    const wait = first.retryAfterMs;
    const left = end - performance.now();
    if (wait === null || wait > Math.min(MOST_WAIT_MS, left / 2) || took + wait >= left) throw first.error;
    await new Promise((resolve) => setTimeout(resolve, wait));
    const second = await this.askOnce(id, captured, end);
    if ('error' in second) throw second.error;
    return second;
  }

  private async askOnce(id: string, captured: Uint8Array, end: number): Promise<Vote | Tried> {
    const { options } = this;
    const left = end - performance.now();
    if (left <= 0) return failed(this.name, 'timeout', 'the deadline has passed before the call', null, 0);
    const { body, headerLength } = question(id, captured, this.rule.fuse !== undefined);
    const started = performance.now();
    const path = `/v2/models/${encodeURIComponent(options.model)}/versions/${options.fingerprint}/infer`;
    let answer: Response;
    let text: string;
    try {
      answer = await (options.fetch ?? fetch)(`${options.origin ?? ''}${path}`, {
        method: 'POST',
        body: body as BodyInit,
        headers: {
          'Content-Type': 'application/octet-stream',
          [LENGTH_HEADER]: String(headerLength),
          'Request-Timeout': (left / 1000).toFixed(3),
          ...options.headers?.(),
        },
        signal: timeoutSignal(Math.ceil(left)),
        cache: 'no-store',
      });
      text = await answer.text();
    } catch (error) {
      const isLate = error instanceof DOMException && error.name === 'TimeoutError';
      const bytesSent = this.bytesOf(body.length);
      return isLate
        ? failed(this.name, 'timeout', 'no answer within the deadline', null, performance.now() - started, bytesSent)
        : failed(this.name, 'unavailable', 'the server cannot be reached', PAUSE_MS, performance.now() - started);
    }
    const callMs = performance.now() - started;
    const call = { callMs, bytesSent: this.bytesOf(body.length), bytesReceived: new TextEncoder().encode(text).length };
    if (!answer.ok) {
      const tried = refused(this.name, answer, text, call);
      if (tried.error.isIdentity) this.options.onIdentity?.();
      return tried;
    }
    try {
      const vote = readAnswer(text, options.nLabels, call);
      this.nTiers = vote.tierVotes?.length ?? 1;
      return vote;
    } catch (error) {
      const said = error instanceof Error ? error.message : String(error); // a login page of some network, perhaps
      return {
        error: new TierError(this.name, 'unavailable', `its answer cannot be read: ${said}`, call),
        retryAfterMs: null,
      };
    }
  }

  /** Bytes of a call with such a body: its head is what this page and a usual browser put there. */
  bytesOf(bodyLength: number): number {
    const { model, fingerprint, headers } = this.options;
    const own = Object.entries(headers?.() ?? {}).reduce(
      (sum, [name, value]) => sum + name.length + value.length + 4,
      0,
    );
    return bodyLength + USUAL_HEAD + model.length + fingerprint.length + own;
  }
}

function failed(
  tier: string,
  reason: 'timeout' | 'unavailable',
  text: string,
  retryAfterMs: number | null,
  callMs: number,
  bytesSent = 0,
): Tried {
  return { error: new TierError(tier, reason, text, { callMs, bytesSent, bytesReceived: 0 }), retryAfterMs };
}

/** The server's refusal, by the table of docs/protocol.md. */
function refused(
  tier: string,
  answer: Response,
  text: string,
  call: { callMs: number; bytesSent: number; bytesReceived: number },
): Tried {
  const own = ownRefusal(text);
  const said = own ?? `HTTP ${answer.status}, and not from coe-cloud`;
  const isIdentity = own !== null && (answer.status === 401 || answer.status === 403);
  const error = (reason: TierError['reason']): TierError =>
    new TierError(tier, reason, said.slice(0, 300), call, isIdentity);
  if (answer.status === 504 || answer.status === 408) return { error: error('timeout'), retryAfterMs: null };
  if (answer.status === 429) {
    const seconds = Number(answer.headers.get('retry-after') ?? NaN);
    return { error: error('overloaded'), retryAfterMs: Number.isFinite(seconds) ? seconds * 1000 : null };
  }
  if (answer.status >= 500) return { error: error('unavailable'), retryAfterMs: PAUSE_MS };
  if (own === null) return { error: error('unavailable'), retryAfterMs: null }; // a proxy's, a login page
  return { error: error('rejected'), retryAfterMs: null };
}

/** The text of a refusal as coe-cloud words it: JSON with `error` alone; null where somebody else answered. */
export function ownRefusal(text: string): string | null {
  try {
    const told = JSON.parse(text) as Record<string, unknown> | null;
    const error = told?.['error'];
    return typeof error === 'string' && Object.keys(told ?? {}).length === 1 ? error : null;
  } catch {
    return null;
  }
}

/** `AbortSignal.timeout`, which browsers have since 2022. */
export function timeoutSignal(afterMs: number): AbortSignal {
  if ('timeout' in AbortSignal) return AbortSignal.timeout(afterMs);
  const controller = new AbortController();
  setTimeout(() => {
    controller.abort(new DOMException('late', 'TimeoutError'));
  }, afterMs);
  return controller.signal;
}
