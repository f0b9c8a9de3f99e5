/** Draws the Markdown of the plain pane: headings, lists, tables, code, bold, emphasis and links, all by `textContent`. @module */
import { make } from "./dom.js"

const INLINE = /(`[^`]+`|\*\*[^*]+\*\*|\*[^*\s][^*]*\*|\[[^\]]+\]\(https?:[^)\s]+\))/

/** Return the nodes of a text that may still grow. @param {string} text @returns {Node[]} */
export function markup(text) {
  /** @type {{ node: any, kind: string, code?: boolean }[]} */
  const blocks = []
  const open = (/** @type {string} */ kind, /** @type {string} */ name, inner = "") => {
    const last = blocks.at(-1)
    if (last?.kind === kind) return last.node
    const node = make(name, {}, ...(inner ? [make(inner)] : []))
    blocks.push({ node, kind })
    return node
  }
  let isCode = false
  for (const line of text.split("\n")) {
    const [, marker, rest] = line.match(/^(#{1,4}|[-*]|\d+\.)\s+(.*)/) ?? []
    if (line.startsWith("```")) {
      isCode = !isCode
      if (isCode) blocks.push({ node: make("pre", {}, make("code")), kind: "code" })
    } else if (isCode) blocks.at(-1)?.node.firstChild.append(`${line}\n`)
    else if (!line.trim()) blocks.push({ node: "", kind: "" })
    else if (marker?.startsWith("#")) blocks.push({ node: make("h3", {}, ...inline(rest)), kind: "heading" })
    else if (marker) open(/\d/.test(marker) ? "ol" : "ul", /\d/.test(marker) ? "ol" : "ul").append(make("li", {}, ...inline(rest)))
    else if (line.startsWith("|")) {
      if (/^[|\s:-]+$/.test(line)) continue
      const table = open("table", "table", "tbody").firstChild
      const cells = line.replace(/^\||\|\s*$/g, "").split("|")
      table.append(make("tr", {}, ...cells.map((cell) => make(table.firstChild ? "td" : "th", {}, ...inline(cell.trim())))))
    } else if (blocks.at(-1)?.kind === "p") blocks.at(-1)?.node.append(" ", ...inline(line))
    else if (/^[ou]l$/.test(blocks.at(-1)?.kind ?? "")) blocks.at(-1)?.node.lastChild.append(" ", ...inline(line.trim()))
    else open("p", "p").append(...inline(line))
  }
  return blocks.flatMap(({ node }) => node || [])
}

/** @param {string} text @returns {(Node | string)[]} */
function inline(text) {
  return text.split(INLINE).map((piece, n) => {
    if (n % 2 === 0) return piece
    if (piece[0] === "`") return make("code", {}, piece.slice(1, -1))
    if (piece[0] === "[") return make("a", { href: piece.slice(piece.indexOf("](") + 2, -1), rel: "noreferrer", target: "_blank" }, piece.slice(1, piece.indexOf("](")))
    return piece.startsWith("**") ? make("strong", {}, piece.slice(2, -2)) : make("em", {}, piece.slice(1, -1))
  })
}
