/**
 * Close Markdown that is half open at the end of a growing text, for display: "a **bo" is shown as bold, without stars.
 *
 * The text itself is not changed, and a wrong guess is corrected with the next piece.
 */

import { bareAddress } from "./parser.js"

const FENCE_LINE = /^[ \t>]*(`{3,}|~{3,})/
const OPENER = /^[ \t>]*([-+*]|\d{1,9}[.)]?|#{1,6}|[-+*][ \t]+\[[ xX]?\]?|[-=*_]{2,}|[`~]{1,}[^`\n]*|\[[^\]]*\]:.*)[ \t]*$/
const ROWS = /(^|\n)([ \t>]*\|.*\n)*[ \t>]*\|.*$/
const DELIMITER = /^[ \t>]*\|[-: |]*$/
const FORMULA = /(^|\n)[ \t>]*(\$\$|\\\[)/g
const MAX_FORMULA = 4_000 // characters
const MAX_REPAIRED = 16_384 // characters: a longer paragraph is text
const MAX_OPEN = 20 // marks; more are not nested
const BREAK = /\n[ \t>]*(?=\n)|\n(?=[ \t>]*([-+*]|\d{1,9}[.)]|#{1,6})[ \t])/g

/** Return `text` as it is shown while more of it may come. @param {string} text @param {boolean} hasFormulas */
export function repaired(text, hasFormulas) {
  const at = text.lastIndexOf("\n") + 1
  const line = text.slice(at)
  if (isInFence(text.slice(0, at))) return /^[ \t>]*[`~]+[ \t]*$/.test(line) ? text.slice(0, at) : text
  if (hasFormulas) text = withoutOpenFormula(text)
  if (OPENER.test(line)) return text.slice(0, at)
  const rows = ROWS.exec(line ? text : text.slice(0, -1))
  if (rows && !isTable(rows[0].trimStart().split("\n"), line)) return text.slice(0, rows.index + rows[1].length)
  let start = 0
  for (const { index } of text.matchAll(BREAK)) start = index + 1
  return text.slice(0, start) + closed(text.slice(start))
}

/** Return `text` without the formula that is open at its end. @param {string} text */
function withoutOpenFormula(text) {
  const skipped = Math.max(0, text.length - MAX_FORMULA)
  const end = text.slice(skipped)
  const inline = end.lastIndexOf("\\(")
  if (inline >= 0 && !end.includes("\\)", inline)) return text.slice(0, skipped + inline)
  let at = -1
  for (const { index, 0: found, 2: mark } of end.matchAll(FORMULA)) {
    if (at >= 0 && index < at) continue // the end of the one before
    const rest = end.slice(index + found.length)
    const close = rest.indexOf(mark === "$$" ? mark : "\\]")
    if (close < 0 && !/\n[ \t>]*\n/.test(rest)) return text.slice(0, skipped + index)
    at = index + found.length + close + 2
  }
  return text
}

/** @param {string} text complete lines */
function isInFence(text) {
  let mark = ""
  for (const line of text.split("\n")) {
    const found = FENCE_LINE.exec(line)?.[1]
    if (!found) continue
    if (!mark) mark = found
    else if (found[0] === mark[0] && found.length >= mark.length) mark = ""
  }
  return mark !== ""
}

/** Return whether the last `rows` are those of a table, or cannot become one. @param {string[]} rows @param {string} line the last row so far; or "", if it is complete */
function isTable(rows, line) {
  return rows.length > 2 || (rows.length === 2 && !(line && DELIMITER.test(rows[1])))
}

/** Return `text`, the last paragraph, with its open inline marks closed. @param {string} text */
function closed(text) {
  if (text.length > MAX_REPAIRED) return text
  text = text.replace(/(\\|&[a-z\d#]*)$/i, "") // remove half of an escape, or of a character reference such as `&amp;`
  const { code } = openMarks(text)
  if (code) return text.endsWith(code) ? text.slice(0, -code.length) : text + code
  let shown = withoutHalfLink(text)
  const { open } = openMarks(shown)
  for (const mark of open.reverse()) {
    if (shown.endsWith(mark)) shown = shown.slice(0, -mark.length) // remove an opening mark without content
    else shown = shown.trimEnd() + mark
  }
  return shown
}

/** Return `text` with only the words of a link at its end that is not complete. @param {string} text */
function withoutHalfLink(text) {
  return text
    .replace(/!?\[([^\[\]\n]*)\]\([^()\s]*(\s[^()]*)?$/, "$1")
    .replace(/!$|!?\[([^\[\]\n]*)\]?$/, (_, words = "") => words)
}

/** Return the marks of emphasis that are open at the end of `text`, or the mark of an open code span. @param {string} text */
function openMarks(text) {
  /** @type {string[]} */
  const open = []
  const marks = /\\[^]|(`+)|(\*{1,3}|~~|_{1,2})|:\/\//g
  for (let found; (found = marks.exec(text)); ) {
    const [whole, code, mark] = found
    if (code) {
      const end = endOfCode(text, marks.lastIndex, code)
      if (end < 0) return { open, code }
      marks.lastIndex = end
    } else if (mark) toggle(open, mark, text[found.index - 1] ?? " ", text[found.index + whole.length] ?? "")
    else if (whole === "://") {
      const address = bareAddress(text, found.index) // its marks are text
      if (address) marks.lastIndex = found.index + address.length - address.indexOf(":")
    }
  }
  return { open, code: "" }
}

/** Return the end of the code span that `mark` opens before `from`, or -1. @param {string} text @param {number} from @param {string} mark */
function endOfCode(text, from, mark) {
  const runs = /`+/g
  runs.lastIndex = from
  for (let run; (run = runs.exec(text)); ) if (run[0] === mark) return runs.lastIndex
  return -1
}

/** @param {string[]} open @param {string} mark @param {string} before @param {string} after */
function toggle(open, mark, before, after) {
  // no emphasis, as in 2*3 and snake_case
  const isInWord = /\w/.test(before) && /\w/.test(after) && (mark === "*" || mark[0] === "_")
  const opens = /\S/.test(after) && !isInWord
  const closes = /\S/.test(before)
  if (mark.length === 3) {
    toggle(open, mark.slice(0, 2), before, after)
    toggle(open, mark[0], before, after)
  } else if (closes && open.at(-1) === mark) open.pop()
  else if (closes && open.includes(mark)) open.splice(open.indexOf(mark))
  else if ((opens || after === "") && open.length < MAX_OPEN) open.push(mark)
}
