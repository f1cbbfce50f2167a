/** Starts the page: fetch the cascade, load its members, then take examples. */
import { BundleError, IdentityError } from '../cascade/errors';
import { dropOthers, fetchBundle } from '../models/bundle';
import { Queue } from '../queue/queue';
import { App } from './app';
import { openBest } from './backend';
import { Corner } from './corner';
import type { Decided } from './device';
import { byId } from './dom';
import { Inputs } from './inputs';

const TOKEN_KEY = 'coe-device-token';

let nWaiting = 0;
let isReady = false;
let isKept = false;
let readyMs = NaN;
let firstDecisionMs: number | null = null;

function headers(): Record<string, string> {
  const token = localStorage.getItem(TOKEN_KEY);
  return token === null || token === '' ? {} : { Authorization: `Bearer ${token}` };
}

function showState(): void {
  const isAway = !navigator.onLine;
  const state = !isReady ? 'wait' : isAway ? 'away' : nWaiting > 0 ? 'queue' : 'ready';
  const waiting = nWaiting === 1 ? '1 waits' : `${nWaiting} wait`;
  const away = nWaiting > 0 ? `no network, ${waiting}` : 'no network';
  const text = { wait: 'starting', away, queue: waiting, ready: 'ready' }[state];
  byId('state').dataset['state'] = state;
  byId('state-text').textContent = text;
}

function showTrouble(text: string): void {
  byId('trouble').textContent = text;
  byId('trouble').hidden = text === '';
}

function askForToken(): void {
  byId('identity').hidden = false;
}

function setToken(token: string): void {
  localStorage.setItem(TOKEN_KEY, token.trim());
  location.reload();
}

async function openQueue(): Promise<Queue | null> {
  try {
    return await Queue.open();
  } catch {
    showTrouble(
      'This browser keeps nothing for this page (a private window?): unanswered examples will not be asked again.',
    );
    return null;
  }
}

async function registerWorker(): Promise<void> {
  if (!('serviceWorker' in navigator)) return;
  try {
    await navigator.serviceWorker.register('sw.js');
    await navigator.serviceWorker.ready;
    document.documentElement.dataset['offline'] = 'ready';
  } catch (error) {
    console.warn('the page will need the network to open:', error);
  }
}

async function start(): Promise<void> {
  const fetched = await fetchBundle(headers());
  const { bundle } = fetched;
  isKept = fetched.isKept;
  byId('task').textContent = bundle.task;
  const device = await openBest(bundle, headers);
  const app = new App(
    device,
    await openQueue(),
    (count) => {
      nWaiting = count;
      showState();
    },
    (decided) => {
      firstDecisionMs ??= performance.now();
      corner.update(decided);
    },
    askForToken,
  );
  const started = (): { readyMs: number; firstDecisionMs: number | null; isKept: boolean } => ({
    readyMs,
    firstDecisionMs,
    isKept,
  });
  const corner = new Corner(device, started, setToken, () => app.forget());
  new Inputs({
    size: bundle.input.size,
    channels: bundle.input.channels,
    onCaptured: (captured) => {
      showTrouble('');
      return app.take(captured);
    },
    onTrouble: showTrouble,
  });
  byId('work').hidden = false;
  await app.resume();
  isReady = true;
  readyMs = performance.now();
  showState();
  window.coe = {
    decide: (id, captured) => app.decide(id, captured),
    outputs: (captured) => device.outputs(captured),
    measure: (captured) => device.decide('measured', captured),
    wake: () => {
      app.wake();
    },
    started,
  };
  if (!isKept) await dropOthers(bundle);
}

/** For scripts in the console, and for the tests. */
interface Scripted {
  decide(id: string, captured: Uint8Array): Promise<Decided>;
  /** As `decide`, but neither shown nor kept. */
  measure(captured: Uint8Array): Promise<Decided>;
  /** Of every member, whatever the vote. */
  outputs(captured: Uint8Array): Promise<Float32Array[]>;
  /** Ask about what waits, now. */
  wake(): void;
  started(): { readyMs: number; firstDecisionMs: number | null; isKept: boolean };
}

declare global {
  interface Window {
    coe?: Scripted;
  }
}

byId('identity').addEventListener('submit', (event) => {
  event.preventDefault();
  setToken(byId<HTMLInputElement>('token').value);
});
for (const name of ['online', 'offline'] as const) window.addEventListener(name, showState);
showState();
start()
  .then(registerWorker)
  .catch((error: unknown) => {
    if (error instanceof IdentityError) askForToken();
    const isOurs = error instanceof IdentityError || error instanceof BundleError;
    showTrouble(
      isOurs
        ? error.message
        : `The cascade cannot be fetched: ${error instanceof Error ? error.message : String(error)}`,
    );
    byId('state').dataset['state'] = 'away';
    byId('state-text').textContent = 'not ready';
  });
