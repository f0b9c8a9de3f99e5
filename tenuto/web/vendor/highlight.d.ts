/** Call `onToken` with each piece of `text` and its kind, such as `kwd`; the pieces joined are `text`. */
export function tokenize(text: string, name: string, onToken: (text: string, kind?: string) => void): void
/** By name, the languages that `tokenize` knows. */
export const languages: Record<string, unknown>
