/**
 * markdown-it with the bounds of the chat element, and with formulas for an app that draws them.
 *
 * It parses blocks and their inline content separately, so that a caller parses inline content only of blocks that changed.
 *
 * @import { BlockState, Environment, InlineState, Token } from "../vendor/markdown.js"
 */
import MarkdownIt from "../vendor/markdown.js"

const MAX_NESTING = 20
/** Length of a paragraph, list or table, in characters, from which its finished words, items or rows become final. */
export const LONG = 4_096
const MAX_COLUMNS = 30 // limit of columns in a table, since 200 columns in 2,000 rows take 0.7 s
const MAX_FORMULA = 4_000 // characters; the search for the end of a formula stops there
// behind a quote it may be an attribute of HTML; a name or a password before the host could feign another host
const SCHEME = /(?<![a-z\d"'=])https?$/i
const ADDRESS = /:\/\/(?![^\s<\/?#]*@)[\p{L}\p{N}][\p{L}\p{N}._-]*(:\d+)?([/?#][^\s<]*)?/uy
const AFTER_ADDRESS = /(&[a-z\d]+;|[?!.,:;*_~'")\]]|[^\P{P}\0-\x7f])$/iu // behind an address, but for a ")" that it has opened
const AT_END = /^[^\s<]{0,99}$/ // behind an address that may grow; without a limit, many addresses would take quadratic time
const MAX_ENTITY = 32 // characters
const INLINE_FORMULA = /\\\(([^]{1,1000}?)\\\)|\$\$([^$]{1,1000})\$\$|\$(?![\s$])([^$\n]{0,999}[^\s$\\])\$(?![\p{N}$])/uy

const parser = new MarkdownIt({ html: false, maxNesting: MAX_NESTING })
parser.validateLink = () => true // nodes.js decides about addresses, and shows the text of refused ones
limitColumns()
limitNesting()
parser.block.ruler.before("fence", "formula", blockFormula, { alt: ["paragraph", "reference", "blockquote", "list"] })
parser.inline.ruler.before("escape", "formula", inlineFormula)
parser.inline.ruler.before("escape", "address", inlineAddress)

/** Make the parser treat a table with more columns as a paragraph, and let no table begin in a long paragraph. */
function limitColumns() {
  const ruler = parser.block.ruler
  const table = ruler.getRules("")[0]
  ruler.at("table", (state, start, end, isSilent) => {
    const dashes = state.src.slice(state.bMarks[start + 1], state.eMarks[start + 1]).split(/-+/)
    const isLong = (state.env.isLong && state.line === 0) || state.eMarks[start + 1] - state.bMarks[state.line] > LONG
    return !isLong && dashes.length <= MAX_COLUMNS + 1 && table(state, start, end, isSilent)
  }, { alt: ["paragraph", "reference"] })
}

/** Blocks that are nested deeper are text; the parser alone would drop them, and all that follows. */
function limitNesting() {
  const tokenize = parser.block.tokenize
  parser.block.tokenize = function (state, start, end) {
    if (state.level < MAX_NESTING) return tokenize.call(this, state, start, end)
    let line = start
    while (line < end && (state.isEmpty(line) || state.sCount[line] >= state.blkIndent)) line++
    const content = state.getLines(start, line, state.blkIndent, false).trim()
    if (content) state.push("text", "", 0).content = content
    state.line = line
  }
}

/**
 * A line that begins with `$$` or `\[`, to the first line that ends with the same mark, within the paragraph. Without such
 * a line the whole paragraph is text. It never depends on later text whether a block begins here, since blocks before it
 * become final with its first line.
 *
 * @param {BlockState} state @param {number} start @param {number} end @param {boolean} isSilent
 */
function blockFormula(state, start, end, isSilent) {
  if (!state.env.hasFormulas || state.sCount[start] - state.blkIndent > 3) return false
  const begin = state.bMarks[start] + state.tShift[start]
  const mark = { "$$": "$$", "\\[": "\\]" }[state.src.slice(begin, begin + 2)]
  if (!mark) return false
  const first = state.src.slice(begin + 2, state.eMarks[start]).trimEnd()
  const at = first.indexOf(mark)
  if (at >= 0 && at < first.length - 2) return false // text follows the formula, so it is no block
  if (isSilent) return true
  let line = start + 1
  let isClosed = at >= 0
  for (; !isClosed && line < end && !state.isEmpty(line) && state.sCount[line] >= state.blkIndent; line++) {
    isClosed = state.eMarks[line] - begin <= MAX_FORMULA && state.src.slice(state.bMarks[line], state.eMarks[line]).trimEnd().endsWith(mark)
  }
  const source = state.getLines(start, line, state.blkIndent, false).trim()
  const opened = isClosed ? null : state.push("paragraph_open", "p", 1)
  const token = state.push(isClosed ? "formula" : "inline", "", 0)
  token.content = source
  token.map = [start, line]
  if (opened) {
    opened.map = token.map
    state.push("paragraph_close", "p", -1)
  }
  state.line = line
  return true
}

/** @param {InlineState} state @param {boolean} isSilent */
function inlineFormula(state, isSilent) {
  if (!state.env.hasFormulas) return false
  INLINE_FORMULA.lastIndex = state.pos
  const found = INLINE_FORMULA.exec(state.src)
  if (!found || state.pos + found[0].length > state.posMax) return false
  if (found[3] && /[\p{L}\p{N}$]$/u.test(state.src.slice(Math.max(0, state.pos - 2), state.pos))) return false // this is a price or a name, and no formula
  if (!isSilent) state.push("formula", "", 0).content = found[0]
  state.pos += found[0].length
  return true
}

/**
 * Return the address without marks around it whose scheme ends at `at`, or "": GitHub's extended autolink, of HTTP alone.
 *
 * @param {string} text @param {number} at
 */
export function bareAddress(text, at) {
  ADDRESS.lastIndex = at
  const scheme = SCHEME.exec(text.slice(Math.max(0, at - 6), at))?.[0]
  let address = scheme && ADDRESS.exec(text)?.[0]
  if (!address) return ""
  let surplus = address.split(")").length - address.split("(").length
  for (let end; (end = AFTER_ADDRESS.exec(address.slice(-MAX_ENTITY))?.[0]); address = address.slice(0, -end.length)) {
    if (end === ")" && surplus-- <= 0) break
  }
  return scheme + address
}

/** @param {InlineState} state @param {boolean} isSilent True: the parser looks for the end of a link, which has no links inside. */
function inlineAddress(state, isSilent) {
  if (isSilent || state.linkLevel > 0 || state.src[state.pos] !== ":") return false
  const { src, pos, env } = state
  const address = bareAddress(src, pos)
  const scheme = address.indexOf(":")
  if (!address || state.pending.length < scheme) return false
  state.pos += address.length - scheme
  const rest = src.slice(state.pos)
  if (AT_END.test(rest) && env.growing?.endsWith(address + rest)) { // more of it may come
    state.pending += address.slice(scheme)
    return true
  }
  state.pending = state.pending.slice(0, -scheme)
  state.push("link_open", "a", 1).attrs = [["href", address]]
  state.push("text", "", 0).content = address
  state.push("link_close", "a", -1)
  return true
}

/** Return the block tokens of `text`; add its definitions of links to `env`. @param {string} text @param {Environment} env */
export function parseBlocks(text, env) {
  /** @type {Token[]} */
  const tokens = []
  parser.block.parse(text, parser, env, tokens)
  return tokens
}

/** Return the tokens of inline Markdown. @param {string} text @param {Environment} env */
export function parseInline(text, env) {
  /** @type {Token[]} */
  const tokens = []
  parser.inline.parse(text, parser, env, tokens)
  return tokens
}
