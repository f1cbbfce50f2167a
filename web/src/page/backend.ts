/** Which runtime backend to use: WebAssembly, unless the models are large and WebGPU has been measured to be faster. */
import type { Bundle } from '../models/bundle';
import { hasWebGpu, type Backend } from '../models/runtime';
import { Device, type Opened } from './device';
import { keepSetting, setting } from './settings';

const LARGE_BYTES = 8 * 2 ** 20; // of all models together; below it WebAssembly wins and WebGPU is not even fetched
const KEY = 'coe-device-backend';
const N_TRIED = 5;

/** The backend chosen by hand or measured before; null: neither. */
export function chosenBackend(bundle: Bundle): Backend | null {
  const [backend, fingerprint] = setting(KEY).split(' ');
  return fingerprint === modelsKey(bundle) && (backend === 'wasm' || backend === 'webgpu') ? backend : null;
}

export function chooseBackend(backend: Backend, bundle: Bundle): void {
  keepSetting(KEY, `${backend} ${modelsKey(bundle)}`);
}

/** The device on the backend that is chosen, or else faster. */
export async function openBest(bundle: Bundle, opened: Opened): Promise<Device> {
  const chosen = chosenBackend(bundle);
  if (chosen === 'webgpu' && (await hasWebGpu())) return Device.open(bundle, chosen, opened);
  const wasm = await Device.open(bundle, 'wasm', opened);
  const bytes = wasm.members.reduce((sum, member) => sum + member.spec.n_bytes, 0);
  if (chosen !== null || bytes < LARGE_BYTES || !(await hasWebGpu())) return wasm;
  let webgpu: Device;
  try {
    webgpu = await Device.open(bundle, 'webgpu', opened);
  } catch {
    chooseBackend('wasm', bundle); // it cannot run these models
    return wasm;
  }
  const isFaster = (await timeOf(webgpu)) < (await timeOf(wasm));
  chooseBackend(isFaster ? 'webgpu' : 'wasm', bundle);
  await (isFaster ? wasm : webgpu).close();
  return isFaster ? webgpu : wasm;
}

/** Milliseconds of one round of all members, the best of a few. */
export async function timeOf(device: Device): Promise<number> {
  let best = Infinity;
  for (let round = 0; round < N_TRIED; round++) {
    const started = performance.now();
    for (const member of device.members) {
      const { size, channels } = member.spec.input;
      const [height, width] = size;
      await member.predict({ width, height, channels, data: new Uint8Array(width * height * channels) });
    }
    best = Math.min(best, performance.now() - started);
  }
  return best;
}

function modelsKey(bundle: Bundle): string {
  return bundle.tiers
    .flatMap((tier) => ('members' in tier ? tier.members : []))
    .map((member) => member.sha256.slice(0, 12))
    .join('-');
}
