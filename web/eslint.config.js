import tseslint from 'typescript-eslint';

/** Which rooms of src/ each room may import; the arrows run one way. */
const ROOMS = {
  cascade: [],
  models: ['cascade'],
  protocol: ['cascade'],
  queue: ['cascade'],
  sources: [],
  page: ['cascade', 'models', 'protocol', 'queue', 'sources'],
};

const oneWay = Object.entries(ROOMS).map(([room, allowed]) => ({
  files: [`src/${room}/**/*.ts`],
  rules: {
    'no-restricted-imports': [
      'error',
      {
        patterns: Object.keys(ROOMS)
          .filter((other) => other !== room && !allowed.includes(other))
          .map((other) => ({ regex: `\\.\\./${other}(/|$)`, message: `${room} may not import ${other}` })),
      },
    ],
    // The rule is pure: no page, no network, no storage.
    ...(room === 'cascade'
      ? { 'no-restricted-globals': ['error', 'document', 'window', 'navigator', 'fetch', 'indexedDB'] }
      : {}),
  },
}));

export default tseslint.config(
  { ignores: ['dist', 'bundle', 'node_modules'] },
  ...tseslint.configs.strictTypeChecked.map((config) => ({ ...config, files: ['src/**/*.ts', 'test/**/*.ts'] })),
  {
    files: ['src/**/*.ts', 'test/**/*.ts'],
    languageOptions: {
      parserOptions: {
        project: ['./tsconfig.json', './src/worker/tsconfig.json'],
        tsconfigRootDir: import.meta.dirname,
      },
    },
    rules: {
      'max-lines': ['error', 400],
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true }],
      '@typescript-eslint/no-non-null-assertion': 'error',
      '@typescript-eslint/explicit-module-boundary-types': 'error',
      eqeqeq: 'error',
    },
  },
  ...oneWay,
);
