/** ONNX Runtime in the browser: WebAssembly everywhere; WebGPU, which is twice as large, fetched only where it is chosen. */
import type { InferenceSession, Tensor, TensorConstructor } from 'onnxruntime-web/wasm';
import wasmUrl from 'onnxruntime-web/ort-wasm-simd-threaded.wasm?url';

/** Whether this build has WebGPU at all; see vite.config.ts. */
declare const __WEBGPU__: boolean;

export type Backend = 'wasm' | 'webgpu';

export interface Runtime {
  readonly backend: Backend;
  readonly Tensor: TensorConstructor;
  /** @throws Error the model cannot be loaded by this runtime */
  open(model: Uint8Array): Promise<InferenceSession>;
}

export type Session = InferenceSession;
export type OrtTensor = Tensor;

/** @throws Error this browser has no such backend */
export async function openRuntime(backend: Backend): Promise<Runtime> {
  return backend === 'webgpu' ? openWebGpu() : openWasm();
}

/** Whether WebGPU is here at all; whether it is the faster one has to be measured. */
export async function hasWebGpu(): Promise<boolean> {
  if (!__WEBGPU__) return false;
  try {
    const gpu = (navigator as { gpu?: { requestAdapter(): Promise<unknown> } }).gpu;
    return gpu !== undefined && (await gpu.requestAdapter()) !== null;
  } catch {
    return false;
  }
}

async function openWasm(): Promise<Runtime> {
  const ort = await import('onnxruntime-web/wasm');
  ort.env.wasm.wasmPaths = { wasm: wasmUrl };
  ort.env.wasm.numThreads = 1; // more would need cross-origin isolation, and small models gain nothing from it
  ort.env.logLevel = 'error';
  return {
    backend: 'wasm',
    Tensor: ort.Tensor,
    open: (model) =>
      ort.InferenceSession.create(model, { executionProviders: ['wasm'], graphOptimizationLevel: 'all' }),
  };
}

async function openWebGpu(): Promise<Runtime> {
  if (!__WEBGPU__) throw new Error('this build of the page has no WebGPU');
  if (!(await hasWebGpu())) throw new Error('this browser has no WebGPU adapter');
  const { default: gpuWasmUrl } = await import('onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm?url');
  const ort = await import('onnxruntime-web/webgpu');
  ort.env.wasm.wasmPaths = { wasm: gpuWasmUrl };
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = 'error';
  return {
    backend: 'webgpu',
    Tensor: ort.Tensor,
    open: (model) => ort.InferenceSession.create(model, { executionProviders: ['webgpu', 'wasm'] }),
  };
}
