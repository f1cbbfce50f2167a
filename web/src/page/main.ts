/** Starts the page: fetch the cascade, load its members, then take examples. */
import { BundleError, IdentityError } from '../cascade/errors';
import { dropOthers, fetchBundle, type Bundle } from '../models/bundle';
import { missingHere } from '../models/ensemble';
import { LIMITS, Queue } from '../queue/queue';
import { App } from './app';
import { openBest } from './backend';
import { Corner } from './corner';
import type { Decided } from './device';
import { byId } from './dom';
import { Inputs } from './inputs';
import { keepSetting, setting } from './settings';
import { showNothing } from './show';
import { wantedText } from './words';

const TOKEN_KEY = 'coe-device-token';

let nWaiting = 0;
let isReady = false;
let isKept = false;
let readyMs = NaN;
let firstDecisionMs: number | null = null;

function headers(): Record<string, string> {
  const token = setting(TOKEN_KEY);
  return token === '' || !canBeSent(token) ? {} : { Authorization: `Bearer ${token}` };
}

/** What a header may hold; no server has a token of anything else. */
function canBeSent(token: string): boolean {
  return /^[\x21-\x7e\xa0-\xff]+$/.test(token);
}

function showState(): void {
  if (!isReady) return;
  const isAway = !navigator.onLine;
  const state = isAway ? 'away' : nWaiting > 0 ? 'queue' : 'ready';
  const waiting = nWaiting === 1 ? '1 waits' : `${nWaiting} wait`;
  const away = nWaiting > 0 ? `no network, ${waiting}` : 'no network';
  setState(state, { away, queue: waiting, ready: 'ready' }[state]);
}

function setState(state: string, text: string): void {
  byId('state').dataset['state'] = state;
  byId('state-text').textContent = text;
}

function showProgress(done: number, of: number): void {
  const bar = byId<HTMLProgressElement>('loading');
  [bar.value, bar.max] = [done, of];
  bar.hidden = done === of;
  if (!isReady) setState('wait', `loading, ${Math.round((100 * done) / of)}%`);
}

function showTrouble(text: string): void {
  byId('trouble').textContent = text;
  byId('trouble').hidden = text === '';
}

/** Ask for a token; the form says what is wrong with the one there is. */
function askForToken(why = ''): void {
  byId('identity-why').textContent = why;
  byId('identity').hidden = false;
}

function onIdentity(): void {
  askForToken(setting(TOKEN_KEY) === '' ? 'The server wants a token.' : 'The server does not know this token.');
}

function useToken(token: string): void {
  const given = token.trim();
  if (given !== '' && !canBeSent(given)) {
    askForToken('No server has such a token: it has characters that cannot be sent.');
    return;
  }
  if (!keepSetting(TOKEN_KEY, given)) {
    askForToken('This browser keeps nothing for this page: open the address with #token=… at its end instead.');
    return;
  }
  location.reload();
}

/** A code to scan has the token behind the #, which no server sees; it does not stay in the address. */
function takeTokenFromAddress(): void {
  const token = new URLSearchParams(location.hash.slice(1)).get('token');
  if (token === null) return;
  keepSetting(TOKEN_KEY, token.trim());
  history.replaceState(null, '', location.pathname + location.search);
}

async function registerWorker(): Promise<void> {
  if (!('serviceWorker' in navigator)) return;
  try {
    await navigator.serviceWorker.register('sw.js');
    await navigator.serviceWorker.ready;
    document.documentElement.dataset['offline'] = 'ready';
  } catch (error) {
    console.info('the page will need the network to open:', error);
  }
}

function showTask(bundle: Bundle): void {
  byId('task').textContent = bundle.task;
  byId('wanted-text').textContent = wantedText(bundle.input);
  const image = byId<HTMLImageElement>('wanted-example');
  image.hidden = !bundle.example;
  if (bundle.example) image.src = bundle.example;
}

async function start(): Promise<void> {
  takeTokenFromAddress();
  const missing = missingHere();
  if (missing !== '') throw new BundleError(missing);
  const fetched = await fetchBundle(headers());
  const { bundle } = fetched;
  isKept = fetched.isKept;
  showTask(bundle);
  const opening = open(bundle);
  new Inputs({
    size: bundle.input.size,
    channels: bundle.input.channels,
    onCaptured: async (captured) => {
      showTrouble('');
      if (!isReady) showNothing('The models are still loading: it is decided as soon as they are there.');
      await (await opening).take(captured);
    },
    onCleared: () => {
      showNothing();
      void opening.then((app) => {
        app.clear();
      });
    },
    onTrouble: showTrouble,
  });
  await opening;
  if (!isKept) await dropOthers(bundle);
}

/** The models loaded, and what was kept read. */
async function open(bundle: Bundle): Promise<App> {
  const device = await openBest(bundle, { headers, onProgress: showProgress, onIdentity });
  const queue = await Queue.open('coe-device', LIMITS, (why) => {
    byId('storage').hidden = false;
    byId('storage').textContent =
      `This browser keeps nothing for this page (${why}: a private window, or no room?). What waits for the cloud is lost when the page is closed.`;
  });
  const app = new App(
    device,
    queue,
    (count) => {
      nWaiting = count;
      showState();
    },
    (decided) => {
      firstDecisionMs ??= performance.now();
      corner.update(decided);
    },
  );
  const started = (): { readyMs: number; firstDecisionMs: number | null; isKept: boolean } => ({
    readyMs,
    firstDecisionMs,
    isKept,
  });
  const corner = new Corner(
    device,
    started,
    () => {
      useToken('');
    },
    () => app.forget(),
  );
  await app.resume();
  isReady = true;
  readyMs = performance.now();
  showState();
  window.coe = {
    decide: async (id, captured) => {
      const decided = await app.decide(id, captured);
      await app.settled();
      return decided;
    },
    outputs: (captured) => device.outputs(captured),
    measure: (captured) => device.decide('measured', captured),
    wake: () => {
      app.wake();
    },
    started,
  };
  return app;
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
  useToken(byId<HTMLInputElement>('token').value);
});
byId('show-identity').addEventListener('click', () => {
  askForToken();
  byId('token').focus();
});
for (const name of ['online', 'offline'] as const) window.addEventListener(name, showState);
start()
  .then(registerWorker)
  .catch((error: unknown) => {
    const isOurs = error instanceof BundleError;
    const said = error instanceof Error ? error.message : String(error);
    if (error instanceof IdentityError) askForToken(said);
    else showTrouble(isOurs ? said : `The cascade cannot be fetched: ${said}. Open the page again to try once more.`);
    if (!(error instanceof IdentityError)) byId('work').hidden = true;
    byId('loading').hidden = true;
    setState('away', 'not ready');
  });
