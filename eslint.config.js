import neostandard from 'neostandard'
import tseslint from 'typescript-eslint'

export default [
  { ignores: ['dist/', '.tap/', 'coverage/'] },
  ...neostandard({ ts: true }),
  ...[...tseslint.configs.strictTypeCheckedOnly, ...tseslint.configs.stylisticTypeCheckedOnly].map(config => ({ ...config, files: ['**/*.ts'] })),
  {
    files: ['**/*.ts'],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/switch-exhaustiveness-check': ['error', { considerDefaultExhaustiveForUnions: true }],
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true }],
      '@typescript-eslint/only-throw-error': ['error', { allowThrowingUnknown: true }],
      '@typescript-eslint/prefer-promise-reject-errors': ['error', { allowThrowingUnknown: true }],
      // A hook with a callback may be async-free and still be given as one.
      '@typescript-eslint/require-await': 'off'
    }
  },
  { rules: { '@stylistic/object-property-newline': 'off' } },
  // A type test names methods without calling them.
  { files: ['**/*.tst.ts'], rules: { '@typescript-eslint/unbound-method': 'off' } },
  {
    files: ['test/**/*.ts'],
    rules: {
      // tap's assertions and subtests are awaited where their order matters.
      '@typescript-eslint/no-floating-promises': 'off',
      // ws is typed twice, for either module system; a test holds sockets of both.
      '@typescript-eslint/no-unsafe-class-instance-assignment': 'off'
    }
  }
]
