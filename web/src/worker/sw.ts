/**
 * The service worker: after the first visit the page opens without any network. It keeps the page's own files and
 * nothing else; models and examples are the page's. A new build waits until no page of the old one is open, so that a
 * page never finds its own files gone.
 */
declare const self: ServiceWorkerGlobalScope & {
  /** Put in front of this file by the build: what it consists of, and a digest of that. */
  SHELL: { readonly build: string; readonly files: readonly string[] };
};

const PREFIX = 'coe-device-shell-';
const NAME = PREFIX + self.SHELL.build;

self.addEventListener('install', (event) => {
  event.waitUntil(
    (async () => {
      const shell = await caches.open(NAME);
      await shell.addAll(self.SHELL.files);
    })(),
  );
});

self.addEventListener('activate', (event) => {
  event.waitUntil(
    (async () => {
      for (const name of await caches.keys()) {
        if (name.startsWith(PREFIX) && name !== NAME) await caches.delete(name);
      }
      await self.clients.claim();
    })(),
  );
});

self.addEventListener('fetch', (event) => {
  const { request } = event;
  if (request.method !== 'GET' || !request.url.startsWith(self.registration.scope)) return;
  const path = new URL(request.url).href.slice(self.registration.scope.length).split(/[?#]/)[0] ?? '';
  if (request.mode !== 'navigate' && !self.SHELL.files.includes(path)) return;
  event.respondWith(
    (async () => {
      const shell = await caches.open(NAME);
      return (await shell.match(request.mode === 'navigate' ? './' : path)) ?? fetch(request);
    })(),
  );
});

export {};
