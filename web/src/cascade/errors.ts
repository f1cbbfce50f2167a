/** A tier gave no answer. `reason` is the first word of a degraded decision, the same as on a Pi. */
export class TierError extends Error {
  constructor(
    readonly tier: string,
    readonly reason: 'unavailable' | 'timeout' | 'overloaded' | 'rejected' | 'failed' | 'error',
    text: string,
    readonly call: { callMs: number; bytesSent: number; bytesReceived: number } | null = null,
    /** Refused for want of a token, not for what was sent. */
    readonly isIdentity = false,
  ) {
    super(`tier ${tier}: ${text}`);
    this.name = 'TierError';
  }

  /** Whether asking again later can help. */
  get passes(): boolean {
    return this.reason !== 'rejected' || this.isIdentity;
  }
}

/** An example cannot be read as the task's input. */
export class InputError extends Error {
  override name = 'InputError';
}

/** The cascade or one of its models cannot be used as declared. */
export class BundleError extends Error {
  override name = 'BundleError';
}

/** The server wants to know who asks. */
export class IdentityError extends Error {
  override name = 'IdentityError';
}
