// Keeps all files of the page, so that it works without a network after the first visit.

const RELEASE = "{{release}}"; // another one with every change of any file
const FILES = {{files}};
const CACHE = `mobilenetv2 ${registration.scope} ${RELEASE}`;
const PATIENCE = 4000; // milliseconds for a slow network to give the page
const known = new Set(FILES.map(({ url }) => new URL(url, registration.scope).href));
let outdated = false; // the server has another release, which must not be mixed with this one

self.addEventListener("install", (event) => event.waitUntil(fill().then(() => skipWaiting())));
self.addEventListener("activate", (event) => event.waitUntil(tidy().then(() => clients.claim())));
self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = request.url.split(/[?#]/)[0];
  if (request.method !== "GET") return;
  if (request.mode === "navigate") {
    if (url === registration.scope || url === `${registration.scope}index.html`) {
      event.respondWith(page(request));
    }
  } else if (!outdated && known.has(url)) {
    event.respondWith(file(request));
  }
});

/** Fetches every file anew; a runtime that is there already, checked by its digest, is kept. */
async function fill() {
  const cache = await caches.open(CACHE);
  await Promise.all(
    FILES.map(async ({ url, integrity }) => {
      const kept = integrity && (await caches.match(url, { ignoreVary: true }));
      const response = kept || (await fetch(url, integrity ? { integrity } : { cache: "no-cache" }));
      if (!response.ok) throw new Error(`${url}: ${response.status}`);
      await cache.put(url, response);
    }),
  );
}

/** Deletes what earlier releases of this page kept. */
async function tidy() {
  const own = (await caches.keys()).filter((name) => name.startsWith(`mobilenetv2 ${registration.scope} `));
  await Promise.all(own.filter((name) => name !== CACHE).map((name) => caches.delete(name)));
}

/** The page itself from the network, where a new release would be; without one, as it was kept. */
async function page(request) {
  try {
    const response = await fetch(request, { signal: AbortSignal.timeout(PATIENCE) });
    if (response.ok) outdated = !(await response.clone().text()).includes(RELEASE);
    return response;
  } catch {
    outdated = false;
    return kept("index.html");
  }
}

async function file(request) {
  return (await kept(request)) ?? fetch(request);
}

async function kept(request) {
  return (await caches.open(CACHE)).match(request, { ignoreVary: true, ignoreSearch: true });
}
