/**
 * After the build: tell the service worker which files the page consists of, and compress what compresses.
 *
 * Usage: node scripts/pack.mjs dist
 */
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { extname, join, relative } from 'node:path';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';

const COMPRESSED = new Set(['.js', '.mjs', '.css', '.html', '.wasm', '.svg', '.webmanifest']);
const LATER = /webgpu|asyncify/; // fetched only where it is chosen, so not kept ahead of that

const folder = process.argv[2] ?? 'dist';
const files = readdirSync(folder, { recursive: true })
  .map((name) => join(folder, name))
  .filter((path) => statSync(path).isFile() && !['.br', '.gz'].includes(extname(path)));

const names = files.map((path) => relative(folder, path)).sort();
const shell = names.filter((name) => name !== 'sw.js' && !LATER.test(name));
const digest = createHash('sha256');
for (const name of shell) digest.update(name).update(readFileSync(join(folder, name)));
const listed = shell.map((name) => (name === 'index.html' ? './' : name));
const told = JSON.stringify({ build: digest.digest('hex').slice(0, 12), files: listed });
const worker = join(folder, 'sw.js');
writeFileSync(worker, `self.SHELL=${told};\n${readFileSync(worker, 'utf8')}`);

let [raw, packed] = [0, 0];
for (const path of files) {
  const content = readFileSync(path);
  if (!COMPRESSED.has(extname(path)) || content.length < 1024) continue;
  const params = { [constants.BROTLI_PARAM_QUALITY]: 9, [constants.BROTLI_PARAM_LGWIN]: 24 };
  const smaller = brotliCompressSync(content, { params });
  writeFileSync(`${path}.br`, smaller);
  writeFileSync(`${path}.gz`, gzipSync(content, { level: 9 }));
  if (shell.includes(relative(folder, path))) [raw, packed] = [raw + content.length, packed + smaller.length];
}
console.log(`the page: ${(raw / 1e6).toFixed(2)} MB, ${(packed / 1e6).toFixed(2)} MB compressed`);
