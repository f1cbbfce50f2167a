/** One ONNX model as a member: tried once before it counts, its outputs checked. */
import { BundleError } from '../cascade/errors';
import type { Pixels } from '../cascade/types';
import type { MemberSpec } from './bundle';
import { inputSpecKey, modelShape, prepare } from './input-spec';
import type { Runtime, Session } from './runtime';

/** What was prepared for an example, shared by members with one input spec. */
class Prepared {
  private pixels: Pixels | null = null;
  private readonly ready = new Map<string, Float32Array | Uint8Array>();

  of(pixels: Pixels, spec: MemberSpec): Float32Array | Uint8Array {
    if (this.pixels !== pixels) {
      this.pixels = pixels;
      this.ready.clear();
    }
    const key = inputSpecKey(spec.input);
    const known = this.ready.get(key) ?? prepare(pixels, spec.input);
    this.ready.set(key, known);
    return known;
  }
}

const prepared = new Prepared();

export class OnnxMember {
  private constructor(
    readonly spec: MemberSpec,
    readonly loadMs: number,
    private readonly runtime: Runtime,
    private readonly session: Session,
    private readonly input: string,
    private readonly output: string,
    private readonly nLabels: number,
  ) {}

  /** @throws BundleError it cannot be loaded, or is not of the declared input or number of labels */
  static async open(spec: MemberSpec, model: Uint8Array, nLabels: number, runtime: Runtime): Promise<OnnxMember> {
    const started = performance.now();
    let session: Session;
    try {
      session = await runtime.open(model);
    } catch (error) {
      throw new BundleError(`${spec.name}: the model cannot be loaded: ${String(error).slice(0, 200)}`);
    }
    const [input, output] = [session.inputNames[0], session.outputNames[0]];
    if (input === undefined || output === undefined || session.inputNames.length !== 1) {
      throw new BundleError(`${spec.name}: expected one input, got ${session.inputNames.join(', ')}`);
    }
    const member = new OnnxMember(spec, performance.now() - started, runtime, session, input, output, nLabels);
    await member.tryOut();
    return member;
  }

  predict(pixels: Pixels): Promise<Float32Array> {
    return this.run(prepared.of(pixels, this.spec));
  }

  async close(): Promise<void> {
    await this.session.release();
  }

  /** On zeros: the shapes fit, the numbers are probabilities, and the model is warm. */
  private async tryOut(): Promise<void> {
    const [height, width] = this.spec.input.size;
    const { channels } = this.spec.input;
    const blank: Pixels = { width, height, channels, data: new Uint8Array(width * height * channels) };
    let output: Float32Array;
    try {
      output = await this.run(prepare(blank, this.spec.input));
    } catch (error) {
      if (error instanceof BundleError) throw error;
      throw new BundleError(`${this.spec.name}: the model does not take its input: ${String(error).slice(0, 200)}`);
    }
    const total = output.reduce((sum, value) => sum + value, 0);
    if (!(Math.abs(total - 1) < 0.02)) {
      throw new BundleError(`${this.spec.name}: expected probabilities that sum to 1, got a sum of ${total}`);
    }
  }

  private async run(input: Float32Array | Uint8Array): Promise<Float32Array> {
    const type = input instanceof Float32Array ? 'float32' : 'uint8';
    const tensor = new this.runtime.Tensor(type, input as Float32Array<ArrayBuffer>, modelShape(this.spec.input));
    const outputs = await this.session.run({ [this.input]: tensor }, [this.output]);
    const data = outputs[this.output]?.data;
    if (!(data instanceof Float32Array) || data.length !== this.nLabels) {
      throw new BundleError(`${this.spec.name}: expected an output of ${this.nLabels} numbers, one for each label`);
    }
    return this.spec.output === 'logits' ? softmax(data) : data;
  }
}

/** In single precision, as the Python runtime does. */
export function softmax(logits: Float32Array): Float32Array {
  const highest = logits.reduce((most, value) => Math.max(most, value), -Infinity);
  const shifted = logits.map((value) => Math.exp(value - highest));
  const total = Math.fround(shifted.reduce((sum, value) => sum + value, 0));
  return shifted.map((value) => value / total);
}
