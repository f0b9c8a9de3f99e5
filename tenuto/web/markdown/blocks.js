/**
 * Blocks of the outermost level: their tokens and their places in a text.
 *
 * @import { Environment, Token } from "../vendor/markdown.js"
 */
import { MAX_INLINE } from "./nodes.js"
import { LONG, parseInline } from "./parser.js"

const MIN_WORDS = 512 // characters
const OPEN = /[*_~`[\]]/ // marks that later text may close
const CLOSED = /(?<=[\p{L}\p{N}])_+(?=[\p{L}\p{N}])|(?<=\s)[*_~]+(?=\s)/gu // marks that are text

/** @typedef {{ tokens: Token[], start: number, end: number }} Block a block of the outermost level, and its place in the parsed text */

/** Return the name under which markdown-it keeps the address of `label`. @param {string} label */
export function normalized(label) {
  return label.trim().replace(/\s+/g, " ").toLowerCase().toUpperCase()
}

/** Group tokens by the blocks of the outermost level. @param {Token[]} tokens @param {string} text @returns {Block[]} */
export function outermost(tokens, text) {
  /** @type {Block[]} */
  const blocks = []
  let line = 0
  let at = 0
  /** @param {number} wanted */
  const startOf = (wanted) => {
    at = lineStart(text, wanted - line, at)
    line = Math.max(line, wanted)
    return at
  }
  for (const token of tokens) {
    if (token.level === 0 && token.nesting >= 0) {
      const [first, last] = token.map ?? [0, 0]
      blocks.push({ tokens: [], start: startOf(first), end: startOf(last) })
    }
    /** @type {Block} */ (blocks.at(-1)).tokens.push(token)
  }
  return blocks
}

/** Return where the line begins that is `line` lines behind `at`. @param {string} text @param {number} line @param {number} [at] */
export function lineStart(text, line, at = 0) {
  for (; line > 0 && at < text.length; line--) at = text.indexOf("\n", at) + 1 || text.length
  return at
}

/**
 * Return whether a block is a paragraph that is drawn by words. If it has an underline it would be a heading. One that
 * begins with a bracket may still be a definition.
 *
 * @param {Block} block @param {string} text
 */
export function isLongParagraph({ tokens: [first], start, end }, text) {
  const isParagraph = /^(paragraph|heading)_open/.test(first.type) && first.markup[0] !== "#"
  return isParagraph && end - start > (/^ *\[/.test(text.slice(start, start + 4)) ? MAX_INLINE : LONG)
}

/** Return words at the beginning of a paragraph if they are many, and no later text changes their nodes; or "". @param {string} text @param {Environment} env */
export function finalWords(text, env) {
  const until = text.lastIndexOf("\n") // the last line may begin another block
  const words = /^[^]*\S (?=\S)/.exec(until < 0 ? text : text.slice(0, until))?.[0] ?? ""
  if (words.length < MIN_WORDS || (env.hasFormulas && /[$\\]/.test(words))) return ""
  const isOpen = parseInline(words, env).some(({ type, content }) => type === "text" && OPEN.test(content.replace(CLOSED, "")))
  return isOpen ? "" : words
}

/** Return the items of a list or the rows of a table but its header: the number of their first token, and where they begin. @param {Block} block @param {string} text */
export function childrenOf(block, text) {
  const isTable = block.tokens[0].type === "table_open"
  const [type, level] = isTable ? ["tr_open", 2] : ["list_item_open", 1]
  const begins = []
  let at = 0
  let line = 0
  for (const [index, token] of block.tokens.entries()) {
    if (token.type !== type || token.level !== level) continue
    const first = token.map?.[0] ?? 0
    at = lineStart(text, first - line, at)
    line = first
    begins.push({ index, at })
  }
  return { begins: begins.slice(isTable ? 1 : 0), isTable }
}

/** Return the two first lines of a table. @param {Block} block @param {string} text */
export function tableHead(block, text) {
  return text.slice(block.start, lineStart(text, (block.tokens[0].map?.[0] ?? 0) + 2))
}

/** @param {Block} list */
export function isLoose(list) {
  return list.tokens.some((token) => token.type === "paragraph_open" && token.level === 2 && !token.hidden)
}
