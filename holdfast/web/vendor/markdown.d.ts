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
  hidden: boolean
}
/** Filled by definitions of links, `[label]: address`. */
export interface Environment { references?: Record<string, { title: string; href: string }> }
interface BlockState { src: string; bMarks: number[]; eMarks: number[] }
type BlockRule = (state: BlockState, start: number, end: number, isSilent: boolean) => boolean
interface Parser<Ruler> {
  ruler: Ruler
  parse(text: string, parser: MarkdownIt, env: Environment, tokens: Token[]): void
}
interface BlockRuler {
  getRules(chain: string): BlockRule[]
  at(name: string, rule: BlockRule, options: { alt: string[] }): void
}
export default class MarkdownIt {
  constructor(options?: { html?: boolean; maxNesting?: number })
  block: Parser<BlockRuler>
  inline: Parser<object>
  validateLink: (address: string) => boolean
}
