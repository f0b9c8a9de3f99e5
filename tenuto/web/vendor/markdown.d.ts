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
  /** Only a definition of a link has it. */
  meta?: { label: string } | null
}
export interface Environment {
  /** Filled by definitions of links, `[label]: address`. */
  references?: Record<string, { title: string; href: string }>
  /** Formulas are tokens, and not text. */
  hasFormulas?: boolean
  /** The text is the rest of a long paragraph. */
  isLong?: boolean
  /** A text behind which more may come: a bare address at its end is no link yet. Only its last inline content has it. */
  growing?: string
}
interface State {
  src: string
  env: Environment
  level: number
  push(type: string, tag: string, nesting: 1 | 0 | -1): Token
}
export interface BlockState extends State {
  bMarks: number[]
  eMarks: number[]
  tShift: number[]
  sCount: number[]
  blkIndent: number
  line: number
  isEmpty(line: number): boolean
  getLines(begin: number, end: number, indent: number, keepsLast: boolean): string
}
export interface InlineState extends State {
  pos: number
  posMax: number
  pending: string
  linkLevel: number
}
type BlockRule = (state: BlockState, start: number, end: number, isSilent: boolean) => boolean
type InlineRule = (state: InlineState, isSilent: boolean) => boolean
interface Parser<Rule> {
  ruler: Ruler<Rule>
  parse(text: string, parser: MarkdownIt, env: Environment, tokens: Token[]): void
}
interface BlockParser extends Parser<BlockRule> {
  tokenize(state: BlockState, start: number, end: number): void
}
interface Ruler<Rule> {
  getRules(chain: string): Rule[]
  at(name: string, rule: Rule, options: { alt: string[] }): void
  before(next: string, name: string, rule: Rule, options?: { alt: string[] }): void
}
export default class MarkdownIt {
  constructor(options?: { html?: boolean; maxNesting?: number })
  block: BlockParser
  inline: Parser<InlineRule>
  validateLink: (address: string) => boolean
}
