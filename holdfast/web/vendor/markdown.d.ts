/** The members of markdown-it that the renderer uses. */
export interface Token {
  type: string
  tag: string
  attrs: [string, string][] | null
  map: [number, number] | null
  nesting: 1 | 0 | -1
  level: number
  children: Token[] | null
  content: string
  markup: string
  info: string
  block: boolean
  hidden: boolean
}
export interface References { [label: string]: { title: string; href: string } }
export interface Environment { references?: References }
export default class MarkdownIt {
  constructor(options?: { html?: boolean; linkify?: boolean; typographer?: boolean; breaks?: boolean; maxNesting?: number })
  block: { parse(text: string, parser: MarkdownIt, env: Environment, tokens: Token[]): void }
  inline: { parse(text: string, parser: MarkdownIt, env: Environment, tokens: Token[]): void }
  parse(text: string, env: Environment): Token[]
  validateLink: (url: string) => boolean
}
