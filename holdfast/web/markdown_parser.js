/**
 * markdown-it with the bounds of the chat element.
 *
 * It parses blocks and their inline content separately, so that a caller parses inline content only of blocks that changed.
 *
 * @import { Environment, Token } from "./vendor/markdown.js"
 */
import MarkdownIt from "./vendor/markdown.js"

const MAX_NESTING = 20
const MAX_COLUMNS = 30 // limit of columns in a table, since 200 columns in 2,000 rows take 0.7 s

const parser = new MarkdownIt({ html: false, maxNesting: MAX_NESTING })
parser.validateLink = () => true // markdown_nodes.js decides about addresses, and shows the text of refused ones
limitColumns()

/** Make the parser treat a table with more columns as a paragraph. */
function limitColumns() {
  const ruler = parser.block.ruler
  const table = ruler.getRules("")[0]
  ruler.at("table", (state, start, end, isSilent) => {
    const header = state.src.slice(state.bMarks[start], state.eMarks[start])
    return header.split("|").length <= MAX_COLUMNS + 2 && table(state, start, end, isSilent)
  }, { alt: ["paragraph", "reference"] })
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
