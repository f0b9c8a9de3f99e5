/**
 * Draws Markdown text that grows: only the end of an answer is parsed and drawn again.
 *
 * A block is final when the block behind it has a complete first line; its nodes are never touched again. In long lists,
 * tables and paragraphs the finished items, rows and words are final too, and an open fence takes its lines without the
 * parser. Final text is dropped. The nodes of an answer do not depend on the pieces in which it came.
 *
 * @import { Environment } from "../vendor/markdown.js"
 * @import { Block } from "./blocks.js"
 * @import { DrawOptions, MarkdownOptions } from "./nodes.js"
 */
import { element } from "../chat/elements.js"
import { childrenOf, finalWords, isLongParagraph, isLoose, normalized, outermost, tableHead } from "./blocks.js"
import { highlight } from "./code.js"
import { appendBlocks, appendInline, codeBlock, dropAfter, loosen, patch, replaceEnd, visible } from "./nodes.js"
import { LONG, parseBlocks } from "./parser.js"
import { repaired } from "./repair.js"

const BLOCKS_OF_CHUNK = 50
const STEP = 4_096 // characters that are drawn before the time is looked at
const FAR = 16_384 // characters that are not drawn: while more are left, only the beginning is shown
const MAX_BLOCK = 16_384 // characters of a list, a table, a quote or another block
const MAX_PARAGRAPH = 8_192 // characters that a browser lays out again with each piece
const MAX_CHUNK = 8_192 // characters of a chunk before its last block
const CHUNKS_OF_GROUP = 50
const MAX_LINES = 4_096 // characters of an open fence in one node
const MAX_INFO = 1_000 // longest first line of a code fence that is drawn line by line, in characters
const FILLER = "x" // put before the rest of a long paragraph, so that the rest does not look like another kind of block
const ANY = "\n" // stands for all labels of links that span several lines
const LABEL = /\\[^]|\[((?:[^\[\]\\]|\\[^])+)\]/g // or an escaped character, which begins no label
const FENCE = /^( {0,3})(`{3,}(?=[^`\n]*\n)|~{3,})([^\n]*)\n/

/**
 * A fence without an end so far. `partial` is the end of its text that may still change.
 *
 * @typedef {{ code: Element, language: string, text: Text, indent: RegExp, end: RegExp, isEmpty: boolean, partial: string, size: number }} OpenFence
 */

/**
 * A long block whose first `count` children are final. `prefix` is parsed before the rest of it, and is not shown.
 *
 * @typedef {{ kind: "list" | "table" | "paragraph", node: Element, prefix: string, start: number, count: number, isLoose: boolean, isBlankBefore?: boolean }} OpenBlock
 */

export class GrowingMarkdown {
  /** @param {HTMLElement} root an empty element @param {MarkdownOptions} [options] */
  constructor(root, options = {}) {
    this.root = root
    this.options = options
    this.hasFormulas = Boolean(options.renderMath)
    /** @type {DrawOptions} */
    this.final = { ...options, isFinal: true }
    this.#target = root
    this.#restart(Object.create(null))
  }

  #given = "" // the text given to the last update …
  #taken = 0 // … and the number of its characters that are drawn
  #text = "" // the drawn text that is not final, whose line breaks are all line feeds …
  #at = 0 // … and where it begins
  #isOver = false
  #isBehind = false // some of the given text is not drawn
  #chunk = 0 // where the last chunk begins, …
  #count = 0 // … the number of its blocks, which are final or begin with final text, …
  #begun = -1 // … and where the last of them begins
  /** Definitions in final text. @type {NonNullable<Environment["references"]>} */
  #references = {}
  /** Labels in final text that may be links, once they are defined. @type {Set<string>} */
  #labels = new Set()
  #isLate = false // True: a link definition came after text that may use it
  /** @type {OpenFence | null} */
  #fence = null
  /** @type {OpenBlock | null} */
  #open = null
  #tail = element("div", {})
  /** The parent of the blocks: the root, or another element until all is drawn anew. */
  #target

  /**
   * Show `text`, the whole answer so far, until the time is over. With `isOver` it is complete. Return whether text is left.
   *
   * @param {string} text @param {boolean} [isOver] @param {() => boolean} [isLate]
   */
  update(text, isOver = false, isLate = () => false) {
    const isSame = text === this.#given
    if (isSame && isOver === this.#isOver && !this.#isBehind) return false
    // equality of slices takes a tenth of the time of `startsWith`
    if (this.#isOver || (!isSame && text.slice(0, this.#taken) !== this.#given.slice(0, this.#taken))) this.#clear()
    this.#given = text
    do {
      this.#take(isOver)
      if (!this.#isOver || !this.#isLate) continue
      this.#target = element("div", {})
      this.#restart(this.#references)
      this.#isBehind = true
    } while (this.#isBehind && !isLate())
    const isFar = this.#target === this.root && text.length > this.#taken + FAR && !this.options.isRead?.()
    this.root.classList.toggle("far", isFar) // the browser lays out the beginning only
    if (!isFar) this.#drawTail()
    if (this.#isOver) {
      if (!this.#tail.hasChildNodes()) this.#tail.remove()
      if (this.#target !== this.root) patch(this.root, 0, this.#target)
    }
    return this.#isBehind
  }

  /** Take over the next characters of the given text. @param {boolean} isOver */
  #take(isOver) {
    const text = this.#given
    let until = this.#taken + STEP
    this.#isBehind = until < text.length
    this.#isOver = isOver && !this.#isBehind
    // without a "\r" at the end, which may be half of a line break
    if (!this.#isBehind) until = text.length
    if (!this.#isOver && text[until - 1] === "\r") until--
    this.#text += text.slice(this.#taken, until).replace(/\r\n?/g, "\n").replace(/\0/g, "\ufffd")
    this.#taken = until
    while (this.#advance()) { /* each step makes some of the text final */ }
  }

  /** Draw again what the option `between` returns for places from `at` on. @param {number} at */
  redraw(at) {
    const text = this.#given
    const isOver = this.#isOver
    if (at > this.#begun && this.#tail.parentNode) return this.#drawTail() // a complete answer has no tail
    this.#clear()
    this.update(text, isOver)
  }

  #clear() {
    this.#given = ""
    this.#target = this.root
    this.#restart(Object.create(null))
  }

  /** Draw from the beginning at the next step. @param {NonNullable<Environment["references"]>} references */
  #restart(references) {
    this.#target.replaceChildren(this.#tail)
    this.#tail.replaceChildren()
    this.#text = ""
    this.#isOver = false
    this.#taken = this.#at = this.#count = 0
    this.#begun = -1
    this.#references = references
    this.#labels = new Set()
    this.#isLate = false
    this.#fence = this.#open = null
  }

  // -- final text

  /** Make some of the text final. Return whether more may become final. */
  #advance() {
    if (this.#fence) return this.#takeLines(this.#fence)
    if (!this.#text && !this.#open) return false
    if (!this.#open && this.#beginFence()) return true
    const { text, blocks, env } = this.#parse(this.#text)
    const shift = this.#at - (text.length - this.#text.length)
    const count = this.#countFinal(blocks, text)
    const tooFar = this.#open ? 0 : this.#cutAfter(text, 0, blocks[0]?.start ?? this.#stable(text))
    if (tooFar) return this.#moveTo(shift + tooFar) // definitions and blank lines
    for (let n = 0; n < blocks.length; n++) {
      const { start, end } = blocks[n]
      if (!this.#open && isLongParagraph(blocks[n], text)) {
        this.#moveTo(shift + start + text.slice(start, start + 4).search(/[^ ]/))
        this.#open = this.#openParagraph()
        return true
      }
      if (n === 0 && this.#open?.kind === "paragraph" && shift + end - this.#open.start > MAX_PARAGRAPH) return this.#cut(this.#open, env)
      const to = this.#cutWithin(blocks[n], text, shift, blocks[n + 1]?.start ?? this.#stable(text))
      if (to >= 0) return n > 0 ? this.#moveTo(shift + start) : this.#finishUntil(blocks[n], text, shift + to)
      if (n >= count) break
      this.#finish(blocks[n], shift, env)
    }
    if (this.#isOver) return this.#moveTo(this.#at + this.#text.length)
    if (count > 0) return this.#moveTo(shift + blocks[count].start)
    return blocks.length > 0 && this.#freeze(blocks[0], text, shift, env)
  }

  /** Return the blocks of `tail`, which continues the open block. @param {string} tail */
  #parse(tail) {
    const text = (this.#open?.prefix ?? "") + tail
    /** @type {Environment} */
    const env = { references: Object.create(this.#references), hasFormulas: this.hasFormulas, isLong: this.#open?.kind === "paragraph" }
    return { text, env, blocks: outermost(parseBlocks(text, env), text) }
  }

  /** Return the length of the beginning of `text` whose division into blocks no later text can change. @param {string} text */
  #stable(text) {
    return this.#isOver ? text.length : text.lastIndexOf("\n", text.lastIndexOf("\n") - 1) + 1
  }

  /** Return where a line ends in time if `text` from `start` to `end` is too long for one step; or 0. @param {string} text @param {number} start @param {number} end */
  #cutAfter(text, start, end) {
    if (end - start <= MAX_BLOCK) return 0
    const before = text.lastIndexOf("\n", start + MAX_BLOCK) + 1
    const at = before > start ? before : text.indexOf("\n", start + MAX_BLOCK) + 1
    return at < end ? at : 0
  }

  /**
   * Return where a block that ends at `end` is cut since it is too long: before an item or a row, else behind a line; or -1.
   *
   * @param {Block} block @param {string} text @param {number} shift @param {number} end
   */
  #cutWithin(block, text, shift, end) {
    const start = (this.#open?.start ?? shift + block.start) - shift
    if (end - start <= MAX_BLOCK) return -1
    const { begins, isTable } = childrenOf(block, text)
    const last = begins.filter(({ at }) => at > start && at <= start + MAX_BLOCK).pop()
    if (last) return last.at
    return (!isTable && this.#cutAfter(text, block.start, end)) || -1
  }

  /** Draw the text before `to` for the last time; behind it begins another block of the kind of `block`. @param {Block} block @param {string} text @param {number} to */
  #finishUntil(block, text, to) {
    const prefix = block.tokens[0].type === "table_open" ? tableHead(block, text) : ""
    if (this.#open) dropAfter(this.#open.node, this.#open.count)
    const part = this.#parse(this.#text.slice(0, to - this.#at))
    for (const one of part.blocks) this.#finish(one, to - part.text.length, part.env)
    this.#open = null
    const isMore = this.#moveTo(to)
    if (prefix) this.#openTable(prefix)
    return isMore
  }

  /** Begin a table that continues one with leave out the row of the header `prefix`. @param {string} prefix */
  #openTable(prefix) {
    const { blocks, env } = this.#parse(prefix)
    const place = this.#place(this.#at)
    appendBlocks(blocks[0].tokens, place, env, this.final)
    const node = place.lastChild?.appendChild(element("tbody", {}))
    if (node) this.#open = { kind: "table", node, prefix, start: this.#at, count: 0, isLoose: false }
  }

  /** Return how many blocks are final. @param {Block[]} blocks @param {string} text */
  #countFinal(blocks, text) {
    const count = blocks.length
    if (this.#isOver || count === 0) return count
    const { start, tokens } = blocks[count - 1]
    const lineEnd = text.indexOf("\n", start)
    // A row below a header may still turn out not to belong to a table.
    // A long line of a paragraph may grow without end. The line may still be a part of a definition before it.
    const isCertain = lineEnd < 0 ? isLongParagraph(blocks[count - 1], text) && !blocks[count - 2]?.tokens[0].meta : tokens[0].type !== "table_open" || text.includes("\n", lineEnd + 1)
    return Math.max(0, count - (isCertain ? 1 : 2))
  }

  /** Let the text that is not final begin at `at`, and keep the definitions before it. Return whether text is left. @param {number} at */
  #moveTo(at) {
    const passed = this.#text.slice(0, at - this.#at)
    this.#define(passed)
    if (this.#open) this.#open.isBlankBefore = /\n[ \t]*\n$/.test(passed.slice(-MAX_INFO))
    return this.#skip(passed.length)
  }

  /** Drop the first `count` characters, which are final. Return whether text is left. @param {number} count */
  #skip(count) {
    this.#text = this.#text.slice(count)
    this.#at += count
    return this.#text !== ""
  }

  /** Keep the definitions in `passed`, and note whether text before them may use one. @param {string} passed */
  #define(passed) {
    /** @type {NonNullable<Environment["references"]>} */
    const found = Object.create(null)
    /** How often each label is defined. @type {Record<string, number>} */
    const counts = Object.create(null)
    if (passed.includes("]:")) {
      for (const { meta } of parseBlocks((this.#open?.prefix ?? "") + passed, { references: found, hasFormulas: this.hasFormulas })) {
        if (meta) counts[meta.label] = (counts[meta.label] ?? 0) + 1
      }
    }
    for (const [, label] of passed.matchAll(LABEL)) {
      const name = label?.includes("\n") ? ANY : normalized(label ?? "")
      if (!(counts[name]-- > 0)) this.#labels.add(name)
    }
    for (const [name, reference] of Object.entries(found)) {
      if (name in this.#references) continue
      this.#references[name] = reference
      this.#isLate ||= this.#labels.has(name) || this.#labels.has(ANY)
    }
  }

  /** Draw a block for the last time. @param {Block} block @param {number} shift from the parsed text to the whole text @param {Environment} env */
  #finish(block, shift, env) {
    const open = this.#open
    if (open) {
      this.#appendRest(open, block, env)
      this.#open = null
    } else if (!block.tokens[0].meta) appendBlocks(block.tokens, this.#place(shift + block.start), env, this.final) // no definition
  }

  /** Return the parent of the next block, which begins at `at`. @param {number} at */
  #place(at) {
    if (this.#count === 0 || this.#count === BLOCKS_OF_CHUNK || at > this.#chunk + MAX_CHUNK) {
      if ((this.#tail.previousSibling?.childNodes.length ?? CHUNKS_OF_GROUP) === CHUNKS_OF_GROUP) this.#tail.before(element("div", { class: "group" }))
      this.#tail.previousSibling?.appendChild(element("div", { class: "chunk" }))
      this.#chunk = at
      this.#count = 0
    }
    this.#count++
    const chunk = /** @type {Element} */ (this.#tail.previousSibling?.lastChild)
    this.#begun = this.#begin(chunk, this.#begun, at)
    return chunk
  }

  /** Append to `parent` what the page shows before the block that begins at `to`. @param {ParentNode} parent @param {number} from where the block before it begins @param {number} to */
  #begin(parent, from, to) {
    parent.append(...(this.options.between?.(from, to) ?? []))
    return to
  }

  // -- fences

  /** Begin a block of code if the text that is not final begins with the first line of a fence. Return whether it does. */
  #beginFence() {
    const match = FENCE.exec(this.#text.slice(0, MAX_INFO))
    if (!match) return false
    const [line, indent, mark, info] = match
    const block = codeBlock(info, this.options)
    this.#place(this.#at).appendChild(block.node)
    this.#fence = {
      code: block.code,
      language: block.language,
      text: block.code.appendChild(document.createTextNode("")),
      indent: new RegExp(`^ {0,${indent.length}}`),
      end: new RegExp(`^ {0,3}${mark[0]}{${mark.length},}[ \\t]*$`),
      isEmpty: true,
      partial: "",
      size: 0,
    }
    this.#skip(line.length)
    return true
  }

  /** Draw the lines of the open fence. Return whether it has ended, and text is left. @param {OpenFence} fence */
  #takeLines(fence) {
    const text = this.#text
    let at = 0
    let drawn = ""
    let line = ""
    let isEnd = false
    /** @param {string} line */
    const draw = (line) => {
      if (!fence.isEmpty) drawn += "\n"
      if (fence.size > MAX_LINES) { // a browser lays out this much again with each line
        replaceEnd(fence.text, fence.partial.length, drawn)
        fence.text = fence.code.appendChild(element("span", { class: "lines" })).appendChild(document.createTextNode(""))
        fence.partial = drawn = ""
        fence.size = 0
      }
      drawn += visible(line.replace(fence.indent, ""))
      fence.size += line.length + 1
      fence.isEmpty = false
    }
    for (let feed; !isEnd && (feed = text.indexOf("\n", at)) >= 0; at = feed + 1) {
      line = text.slice(at, feed)
      isEnd = fence.end.test(line)
      if (!isEnd) draw(line)
    }
    line = isEnd ? "" : text.slice(at)
    if (this.#isOver && line) {
      at = text.length
      if (!fence.end.test(line)) draw(line)
      line = ""
    }
    const partial = line && !/^ {0,3}[`~]+[ \t]*$/.test(line) ? (fence.isEmpty ? "" : "\n") + visible(line.replace(fence.indent, "")) : ""
    replaceEnd(fence.text, fence.partial.length, drawn + partial)
    fence.partial = partial
    const isMore = this.#skip(at)
    if (!isEnd && !this.#isOver) return false
    this.#fence = null
    highlight(fence.code, fence.language)
    return isMore
  }

  // -- other long blocks

  /** Draw a paragraph up to its 8,192nd character for the last time; the rest is another one. Return whether text is left. @param {OpenBlock} open @param {Environment} env */
  #cut(open, env) {
    const text = this.#text.slice(0, open.start + MAX_PARAGRAPH - this.#at)
    const space = text.search(/\s\S*$/)
    const half = /[\ud800-\udbff]$/.test(text) ? 1 : 0
    this.#pass(open, space > 0 || open.count ? text.slice(0, space + 1) : text.slice(0, text.length - half), env)
    this.#open = this.#openParagraph()
    return this.#text !== ""
  }

  /** Draw the first characters of an open paragraph for the last time. @param {OpenBlock} open @param {string} shown @param {Environment} env */
  #pass(open, shown, env) {
    const words = document.createDocumentFragment()
    env.growing = shown // a cut address is no link
    appendInline(shown, words, env, this.final)
    patch(open.node, open.count, words)
    open.node.normalize()
    open.count = open.node.childNodes.length
    this.#moveTo(this.#at + shown.length)
  }

  /** Begin a long paragraph, perhaps one that continues another one. @returns {OpenBlock} */
  #openParagraph() {
    const node = this.#place(this.#at).appendChild(element("p", { dir: "auto" }))
    return { kind: "paragraph", node, prefix: FILLER, start: this.#at, count: 0, isLoose: false }
  }

  /**
   * Draw the finished items, rows or words of a long list, table or paragraph for the last time.
   *
   * @param {Block} block the first one @param {string} text the parsed text @param {number} shift from it to the whole text @param {Environment} env
   */
  #freeze(block, text, shift, env) {
    if (this.#open?.kind === "paragraph") {
      const words = finalWords(this.#text.slice(0, block.end - FILLER.length), env)
      if (words) this.#pass(this.#open, words, env)
      return false
    }
    if (!this.#open && block.end - block.start < LONG) return false
    const limit = (this.#open?.start ?? shift + block.start) - shift + MAX_BLOCK
    const begins = childrenOf(block, text).begins.filter(({ at }) => at <= limit && text.includes("\n", at))
    const next = begins.at(-1) // an item or row is final when the next one has a complete first line
    if (!next || next === begins[0]) return false
    const done = { ...block, tokens: block.tokens.slice(0, next.index), end: next.at }
    if (this.#open) this.#appendRest(this.#open, done, env, block)
    else this.#openBlock(done, block, text, shift, env)
    this.#moveTo(shift + next.at)
    return false
  }

  /** Begin a long block with its finished items or rows. @param {Block} done @param {Block} block @param {string} text @param {number} shift @param {Environment} env */
  #openBlock(done, block, text, shift, env) {
    const start = shift + block.start
    const place = this.#place(start)
    appendBlocks(done.tokens, place, env, this.final)
    const node = /** @type {Element} */ (place.lastChild)
    if (node.nodeName === "TABLE") {
      const body = /** @type {Element} */ (node.lastChild)
      this.#open = { kind: "table", node: body, prefix: tableHead(block, text), start, count: body.childNodes.length, isLoose: false }
    } else {
      this.#open = { kind: "list", node, prefix: "", start, count: node.childNodes.length, isLoose: isLoose(block) }
    }
  }

  /**
   * Draw `block` into the open block for the last time.
   *
   * @param {OpenBlock} open @param {Block} block @param {Environment} env @param {Block} [whole] of which `block` is the beginning
   */
  #appendRest(open, block, env, whole = block) {
    dropAfter(open.node, open.count)
    this.#appendInside(open, block, open.node, env, this.final, whole)
    open.count = open.node.childNodes.length
  }

  /** Append to `parent` the nodes that continue the open block. @param {OpenBlock} open @param {Block} block @param {Node} parent @param {Environment} env @param {DrawOptions} options @param {Block} whole */
  #appendInside(open, block, parent, env, options, whole = block) {
    if (open.kind === "paragraph") {
      const inline = block.tokens.find((token) => token.type === "inline")
      appendInline(inline?.content.slice(FILLER.length) ?? "", parent, env, options)
    } else if (open.kind === "table") {
      const first = block.tokens.findIndex((token) => token.type === "tbody_open")
      const last = block.tokens.findIndex((token) => token.type === "tbody_close")
      if (first >= 0) appendBlocks(block.tokens.slice(first + 1, last < 0 ? undefined : last), parent, env, options)
    } else {
      const hasParagraphs = open.isLoose || open.isBlankBefore || isLoose(whole)
      if (hasParagraphs && !open.isLoose && parent === open.node) {
        loosen(open.node)
        open.isLoose = true
      }
      const items = block.tokens.slice(1, /_list_close$/.test(/** @type {{ type: string }} */ (block.tokens.at(-1)).type) ? -1 : undefined)
      appendBlocks(items, parent, env, options, hasParagraphs)
    }
  }

  // -- text that is not final

  #drawTail() {
    const open = this.#open
    const text = this.#fence ? "" : this.#text // an open fence draws its own lines
    const shown = this.#isOver ? text : repaired(text, this.hasFormulas)
    const { blocks, env } = this.#parse(shown)
    const inside = document.createDocumentFragment()
    const outside = document.createDocumentFragment()
    const shift = this.#at - (open?.prefix.length ?? 0)
    let begun = this.#begun
    for (const [n, block] of blocks.entries()) {
      env.growing = this.#isOver || blocks[n + 1] ? "" : shown
      if (n > 0 || !open) {
        begun = this.#begin(outside, begun, shift + block.start)
        appendBlocks(block.tokens, outside, env, this.options)
      } else this.#appendInside(open, block, inside, env, this.options)
    }
    this.#begin(outside, begun, this.#taken)
    if (open) patch(open.node, open.count, inside)
    patch(this.#tail, 0, outside)
  }
}
