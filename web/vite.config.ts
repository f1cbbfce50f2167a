import { defineConfig } from 'vite';

/** COE_WEB_WEBGPU=0 leaves WebGPU out: the build is then a third as large (35 MB less before compression). */
const hasWebGpu = process.env['COE_WEB_WEBGPU'] !== '0';

export default defineConfig({
  base: './',
  define: { __WEBGPU__: JSON.stringify(hasWebGpu) },
  server: {
    proxy: {
      // npm run dev, beside coe-cloud serve --http-port 8000
      '^/(cascade.json|models/)': { target: 'http://127.0.0.1:8000', rewrite: (path) => `/device${path}` },
      '/v2': { target: 'http://127.0.0.1:8000', changeOrigin: false },
    },
  },
  worker: { format: 'es', rolldownOptions: { output: { entryFileNames: 'assets/[name]-[hash].js' } } },
  build: {
    target: 'es2022',
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0, // the content-security-policy allows no data: scripts or styles
    rolldownOptions: {
      input: { index: 'index.html', sw: 'src/worker/sw.ts' },
      output: { entryFileNames: (chunk) => (chunk.name === 'sw' ? 'sw.js' : 'assets/[name]-[hash].js') },
    },
  },
});
