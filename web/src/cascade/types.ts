/** What moves through a cascade: one example goes in, a vote comes out of each tier. */

/** One example, as it was captured, and as local members take it in once decoded. */
export interface Example {
  readonly id: string;
  /** PNG or JPEG. */
  readonly captured: Uint8Array;
  /** What is sent of it; none: it goes as it was captured. */
  readonly toSend?: () => Promise<Uint8Array>;
  readonly pixels: Pixels;
  /** `performance.now()` millisecond by which the answer is wanted. */
  readonly deadline: number;
}

/** An image of bytes, row by row, the channels of a pixel together. */
export interface Pixels {
  readonly width: number;
  readonly height: number;
  readonly channels: 1 | 3;
  readonly data: Uint8Array;
}

/** Of a member that does not vote, and of a tier none of whose members did. */
export const NO_LABEL = -1;

/** What one member said. */
export interface Ballot {
  readonly member: string;
  /** NO_LABEL where it does not vote. */
  readonly label: number;
  /** Of every label; empty where it does not vote. */
  readonly probabilities: Float32Array;
  /** Why it does not vote. */
  readonly failure?: string;
  readonly timeMs: number;
}

/** What a tier's members said: a label each, -1 where one gave none, and its score, NaN where unknown. */
export interface Said {
  readonly labels: readonly number[];
  readonly scores: readonly number[];
}

/** What one tier says. */
export interface Vote {
  readonly label: number;
  /** Votes for it. */
  readonly count: number;
  /** Members asked. */
  readonly asked: number;
  readonly nMembers: number;
  /** Mean probability that the members asked give the label, in single precision; NaN where unknown. */
  readonly score: number;
  /** Of the members asked, in order; none where a tier does not show its members. */
  readonly ballots: readonly Ballot[];
  /** Of its members, where a server shows them, or a calibrated vote weighed them. */
  readonly said?: Said;
  /** For a tier that is a cascade itself: which of its tiers answered, from 1, and the vote of each, NaN if not asked. */
  readonly exitTier?: number;
  readonly tierVotes?: readonly number[];
  /** Why the tier itself had to fall back; null where it had not. */
  readonly degraded?: string | null;
  readonly call?: Call;
}

/** What calls of other machines cost. */
export interface Call {
  readonly callMs: number;
  readonly bytesSent: number;
  readonly bytesReceived: number;
  readonly serverMs?: number;
}

/** One example's answer, and how it came about. */
export interface Decision {
  readonly id: string;
  readonly label: number;
  /** From 1. */
  readonly exitTier: number;
  /** Votes / asked. */
  readonly vote: number;
  readonly score: number;
  readonly asked: number;
  readonly nMembers: number;
  /** Of each tier visited, in order. */
  readonly tierVotes: readonly number[];
  readonly tierTimesMs: readonly number[];
  /** Why this is not the answer of the tier that should have given it; null: it is. */
  readonly degraded: string | null;
  /** Whether the same example may get the answer it should have had, later. */
  readonly canBeCorrected: boolean;
  readonly call: Call | null;
  /** Of each local tier visited: what its members said. */
  readonly ballots: readonly (readonly Ballot[])[];
  /** Of each tier visited: what its members said, where the cascade is calibrated. */
  readonly said?: readonly Said[];
}

export const NO_CALL: Call = { callMs: 0, bytesSent: 0, bytesReceived: 0 };

export function addedCalls(calls: readonly Call[]): Call | null {
  if (calls.length === 0) return null;
  return calls.reduce((total, call) => {
    const serverMs = (total.serverMs ?? 0) + (call.serverMs ?? 0);
    return {
      callMs: total.callMs + call.callMs,
      bytesSent: total.bytesSent + call.bytesSent,
      bytesReceived: total.bytesReceived + call.bytesReceived,
      ...(serverMs > 0 ? { serverMs } : {}),
    };
  });
}
