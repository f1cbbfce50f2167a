/** Exact fractions, so that 2 of 3 passes "2/3" and does not pass 0.67. */
export interface Fraction {
  readonly numerator: bigint;
  readonly denominator: bigint;
}

const FORM = /^([+-]?)(?:(\d+)\/(\d+)|(\d*)\.?(\d*)(?:e([+-]?\d{1,4}))?)$/i;

export function fraction(numerator: number | bigint, denominator: number | bigint = 1): Fraction {
  let [p, q] = [BigInt(numerator), BigInt(denominator)];
  if (q === 0n) throw new RangeError(`expected a fraction, got ${p}/0`);
  if (q < 0n) [p, q] = [-p, -q];
  const common = gcd(p < 0n ? -p : p, q);
  return { numerator: p / common, denominator: q / common };
}

/** The exact value of "2/3" or of a decimal: 0.66 is 66/100, not its nearest double. Null where it is neither. */
export function parseFraction(text: string): Fraction | null {
  const found = FORM.exec(text.trim());
  if (!found) return null;
  const sign = found[1] === '-' ? -1n : 1n;
  if (found[2] !== undefined && found[3] !== undefined) {
    const q = BigInt(found[3]);
    return q === 0n ? null : fraction(sign * BigInt(found[2]), q);
  }
  const [whole, decimals] = [found[4] ?? '', found[5] ?? ''];
  if (whole + decimals === '') return null;
  const exponent = Number(found[6] ?? '0') - decimals.length;
  const digits = sign * BigInt(whole + decimals);
  return exponent < 0 ? fraction(digits, 10n ** BigInt(-exponent)) : fraction(digits * 10n ** BigInt(exponent));
}

/** The least whole number that is not below `value * n`. */
export function ceilTimes(value: Fraction, n: number): number {
  const product = value.numerator * BigInt(n);
  const whole = product / value.denominator;
  return Number(whole * value.denominator < product ? whole + 1n : whole);
}

/** Whether `part / whole >= value`, between integers. */
export function isAtLeast(part: number, whole: number, value: Fraction): boolean {
  return BigInt(part) * value.denominator >= BigInt(whole) * value.numerator;
}

/** Below, at or above 0, as `a - b` is. */
export function compare(a: Fraction, b: Fraction): number {
  const difference = a.numerator * b.denominator - b.numerator * a.denominator;
  return difference < 0n ? -1 : difference > 0n ? 1 : 0;
}

export function minus(a: Fraction, b: Fraction): Fraction {
  return fraction(a.numerator * b.denominator - b.numerator * a.denominator, a.denominator * b.denominator);
}

function gcd(a: bigint, b: bigint): bigint {
  while (b !== 0n) [a, b] = [b, a % b];
  return a === 0n ? 1n : a;
}
