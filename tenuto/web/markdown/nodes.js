/**
 * From the tokens of markdown-it to DOM nodes, by DOM calls alone: 24 elements, and links that cannot do harm.
 *
 * @import { Environment, Token } from "../vendor/markdown.js"
 */
import { element } from "../chat/elements.js"
import { highlight } from "./code.js"
import { parseInline } from "./parser.js"

/**
 * `between` returns new nodes to show between two blocks of the outermost level that begin at `from` and at `to` of the text.
 * `from` is -1 before the first block, and `to` the length of the text after the last one. It gives equal nodes each time.
 * With `isRead` no text is hidden, because the reader or the focus would lose the place.
 * `renderMath` returns a new node for a formula, or null to show its source.
 *
 * @typedef {{
 *   images?: string | null,
 *   copyLabel?: string,
 *   between?: (from: number, to: number) => Node[],
 *   isRead?: () => unknown,
 *   renderMath?: ((tex: string, isBlock: boolean) => Node | null) | null,
 * }} MarkdownOptions
 */

/** Options for one drawing: `isFinal` if it is the last one of its nodes. @typedef {MarkdownOptions & { isFinal?: boolean }} DrawOptions */

// longest paragraph, in characters, whose inline Markdown is parsed; inside another block a longer one is shown as text
export const MAX_INLINE = 16_384
const SAFE = new Set(["http:", "https:", "mailto:"])
const BIDI = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g
const TASK = /^\[([ xX])\]\s+/

/**
 * Append the nodes of `tokens` to `parent`. With `isLoose`, the items of the outermost list have paragraphs.
 *
 * @param {Token[]} tokens @param {Node} parent @param {Environment} env @param {DrawOptions} options @param {boolean} [isLoose]
 */
export function appendBlocks(tokens, parent, env, options, isLoose = false) {
  /** @type {Node[]} */
  const stack = [parent]
  const last = tokens.findLast(({ content }) => content)
  for (const token of tokens) {
    const top = /** @type {Node} */ (stack.at(-1))
    if (token.nesting < 0) {
      if (isShown(token, isLoose)) stack.pop()
    } else if (token.nesting > 0) {
      if (isShown(token, isLoose)) stack.push(top.appendChild(blockElement(token)))
    } else if (token.type === "inline") appendInline(token.content, top, token === last ? env : { ...env, growing: "" }, options)
    else if (token.type === "fence" || token.type === "code_block") {
      const block = codeBlock(token.info, options)
      block.code.append(visible(token.content.replace(/\n$/, "")))
      top.appendChild(block.node)
      if (options.isFinal) highlight(block.code, block.language)
    } else if (token.type === "hr") top.appendChild(element("hr", {}))
    else if (token.type === "formula") top.appendChild(formula(token.content, "div", options))
    else appendText(top, token.content)
  }
}

/** Return whether `token` has an element: the paragraphs of a tight list have none. @param {Token} token @param {boolean} isLoose */
function isShown(token, isLoose) {
  return !token.hidden || (isLoose && token.level === 2)
}

/** @param {Token} token */
function blockElement(token) {
  const tag = token.type === "heading_open" ? `h${Math.min(6, Number(token.tag[1]) + 2)}` : token.tag
  const node = document.createElement(tag)
  if (/^(p|h\d|li|t[hd]|blockquote)$/.test(tag)) node.dir = "auto"
  if (tag === "table") node.tabIndex = 0 // the keyboard scrolls a wide one
  for (const [name, value] of token.attrs ?? []) {
    if (name === "start") node.setAttribute("start", value)
    else if (name === "style") node.style.textAlign = value.replace("text-align:", "")
  }
  return node
}

/** Return a block for code in the language that `info` names. @param {string} info @param {MarkdownOptions} options */
export function codeBlock(info, options) {
  const language = info.trim().split(/\s/, 1)[0]
  const code = element("code", {})
  const copy = element("button", { part: "copy", type: "button" }, options.copyLabel ?? "Copy")
  const head = element("div", { part: "code-head" }, element("span", {}, language), copy)
  return { node: element("div", { part: "code" }, head, element("pre", {}, code)), code, language }
}

/** Return `text` with the numbers of characters in place of those that change the direction of code. @param {string} text */
export function visible(text) {
  return text.replace(BIDI, (one) => `[U+${one.codePointAt(0)?.toString(16).toUpperCase().padStart(4, "0")}]`)
}

/**
 * Append the nodes of the inline Markdown `text`.
 *
 * @param {string} text @param {Node} parent @param {Environment} env @param {MarkdownOptions} options
 */
export function appendInline(text, parent, env, options) {
  if (text.length > MAX_INLINE) {
    for (let at = 0; at < text.length; at += MAX_INLINE) { // a browser lays out only the last element again
      parent.appendChild(element("span", { class: "lines" }, text.slice(at, at + MAX_INLINE)))
    }
    return
  }
  const tokens = parseInline(text, env)
  const task = isStartOfItem(parent) ? TASK.exec(tokens[0]?.content ?? "") : null
  if (task) {
    const checked = task[1] !== " "
    parent.appendChild(element("input", { type: "checkbox", disabled: true, "aria-label": "Task", checked })) // the text behind it is read separately
    tokens[0].content = " " + tokens[0].content.slice(task[0].length)
  }
  /** @type {Node[]} */
  const stack = [parent]
  let words = "" // the text of several tokens, because a call for each would take quadratic time
  for (const token of tokens) {
    if (token.type === "softbreak") words += "\n"
    else if (token.type === "text" || token.type === "text_special") words += token.content
    else {
      appendText(/** @type {Node} */ (stack.at(-1)), words)
      words = ""
      appendInlineToken(token, stack, options)
    }
  }
  appendText(parent, words)
}

/** @param {Node} parent */
function isStartOfItem(parent) {
  if (parent.nodeName === "LI") return !parent.hasChildNodes()
  return parent.parentNode?.nodeName === "LI" && parent.parentNode.firstChild === parent
}

/** @param {Token} token @param {Node[]} stack the open elements @param {MarkdownOptions} options */
function appendInlineToken(token, stack, options) {
  const top = /** @type {Node} */ (stack.at(-1))
  if (token.nesting > 0) stack.push(top.appendChild(token.type === "link_open" ? link(addressOf(token)) : document.createElement(token.tag)))
  else if (token.nesting < 0) showHost(/** @type {HTMLElement} */ (stack.pop()))
  else if (token.type === "code_inline") top.appendChild(element("code", {}, visible(token.content)))
  else if (token.type === "hardbreak") top.appendChild(element("br", {}))
  else if (token.type === "image") top.appendChild(image(token, options))
  else if (token.type === "formula") top.appendChild(formula(token.content, "span", options))
  else appendText(top, token.content)
}

/** Return the app's node for a formula, or the formula as it is written. @param {string} source @param {"div" | "span"} name @param {MarkdownOptions} options */
function formula(source, name, { renderMath }) {
  const [start, end] = source.startsWith("$") && !source.startsWith("$$") ? [1, -1] : [2, -2]
  /** @type {Node | null | undefined} */
  let own
  try {
    own = renderMath?.(source.slice(start, end).trim(), source.startsWith("$$") || source.startsWith("\\["))
  } catch (error) {
    console.error(`<tenuto-chat> renderMath failed for ${source}: ${error}`)
  }
  return element(name, { class: "math" }, own ?? source)
}

/** @param {Node} parent @param {string} text */
function appendText(parent, text) {
  const last = parent.lastChild
  if (last instanceof Text) last.appendData(text)
  else if (text) parent.appendChild(document.createTextNode(text))
}

/** Return the address of a link or an image, its first attribute. @param {Token} token */
function addressOf({ attrs }) {
  return attrs?.[0][1] ?? ""
}

/** @param {string} address @param {string} [base] */
function parsed(address, base) {
  try {
    return new URL(address, base) // throws for an address without a scheme and a base
  } catch {
    return null
  }
}

/** Return an absolute address that may be opened, or null. @param {string} address */
function safeAddress(address) {
  const url = parsed(address)
  return url && SAFE.has(url.protocol) ? url : null
}

/** Return a link to `address`, or an element without an address if it is not safe. @param {string} address */
function link(address) {
  const url = safeAddress(address)
  return url ? element("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }) : element("span", {})
}

/** Show the host of a link whose text looks like an address of another host. @param {HTMLElement & { host?: string }} node */
function showHost(node) {
  if (!node.host) return
  const text = node.textContent ?? ""
  if (!/^\s*([a-z]+:\/\/)?[^\s/]+\.[^\s]/i.test(text)) return
  const shown = safeAddress(/^\s*[a-z]+:\/\//i.test(text) ? text.trim() : `https://${text.trim()}`)
  if (shown?.host !== node.host) node.append(element("span", { class: "host" }, ` (${node.host})`))
}

/** Return a link to an image with its description, or the image if the page allows it. @param {Token} token @param {MarkdownOptions} options */
function image(token, options) {
  const address = addressOf(token)
  const words = plainText(token.children ?? []) || "image"
  const own = parsed(address, location.href)
  if (options.images === "same-origin" && own?.origin === location.origin) return element("img", { alt: words, src: own.href })
  const node = link(address)
  node.append(words)
  showHost(node)
  return node
}

/** @param {Token[]} tokens @returns {string} */
function plainText(tokens) {
  return tokens.map((one) => (one.children ? plainText(one.children) : one.content)).join("")
}

/** Put the inline content of the items of `list` into paragraphs: the list has become loose. @param {Element} list */
export function loosen(list) {
  for (const item of list.children) {
    /** @type {HTMLElement | null} */
    let paragraph = null
    for (const child of [...item.childNodes]) {
      if (isBlock(child)) paragraph = null
      else {
        if (!paragraph) child.before((paragraph = element("p", { dir: "auto" })))
        paragraph.append(child)
      }
    }
  }
}

/** @param {Node} node */
function isBlock(node) {
  return /^(P|H\d|UL|OL|DIV|BLOCKQUOTE|HR|TABLE)$/.test(node.nodeName)
}

/** Remove the children of `node` but the first `count`. @param {Node} node @param {number} count */
export function dropAfter(node, count) {
  while (node.childNodes.length > count) node.lastChild?.remove()
}

/** Replace the last `length` characters of `node` by `text`. @param {Text} node @param {number} length @param {string} text */
export function replaceEnd(node, length, text) {
  const end = node.data.slice(node.length - length)
  if (text.startsWith(end)) node.appendData(text.slice(length))
  else node.replaceData(node.length - length, length, text)
}

/** Make the children of `parent` from number `from` on equal to those of `wanted`, and keep nodes that stay. @param {Element} parent @param {number} from @param {Node} wanted */
export function patch(parent, from, wanted) {
  const nodes = [...wanted.childNodes]
  dropAfter(parent, from + nodes.length)
  // new nodes first: a browser prepares the layout of a text that changes at once, and again with each new node
  parent.append(...nodes.splice(parent.childNodes.length - from))
  for (const next of nodes) {
    const here = parent.childNodes[from++]
    const isSame = here.isEqualNode(next) || (here.nodeName === "CODE" && here.textContent === next.textContent) // colours stay
    if (!isSame && !isPatched(here, next)) here.replaceWith(next)
  }
}

/** Change the node `here` into a copy of `next`, if both are of the same kind. Return whether that was possible. @param {ChildNode} here @param {Node} next */
function isPatched(here, next) {
  if (here instanceof Text && next instanceof Text) replaceEnd(here, here.length, next.data)
  else if (here instanceof Element && here.cloneNode(false).isEqualNode(next.cloneNode(false))) patch(here, 0, next)
  else return false
  return true
}
