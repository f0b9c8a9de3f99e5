/** The parts of a message: text, reasoning, tools, sources, attachments and data. @module */
import { markNode, placeOf } from "./marks.js"
import { element, growText, setText } from "./elements.js"
import { GrowingMarkdown } from "../markdown/markdown.js"

/** @typedef {import("../view.js").Part} Part */
/**
 * `update` gets the part, whether its message has ended, and where its text begins in that of the message. It returns
 * true while it has drawn a part of it only.
 *
 * @typedef {{ node: HTMLElement, update: (part: Part, isOver: boolean, start: number) => boolean | void, remark?: (at: number) => void }} PartView
 */

/** Return the usual view of parts of one type. @param {import("./message.js").MessageView} message @param {string} type @returns {PartView} */
export function partView(message, type) {
  const { words } = message.panel
  if (type === "text") return message.message.role === "user" ? typedPart(message) : textPart(message)
  if (type === "reasoning") return foldedPart(type, () => words.reasoning, ({ text = "" }) => text)
  if (type === "tool") return foldedPart(type, (part, isOver) => [part.name, toolState(part, isOver, words)].filter(Boolean).join(" · "), toolWords)
  if (type === "attempt") return foldedPart(type, ({ characters }) => `${words.attempt} · ${Number(characters).toLocaleString()} ${words.charactersBack}`, attemptWords)
  if (type === "source" || type === "file") return linkPart(type === "file" ? "attachment" : type)
  return foldedPart("data", (part) => String(part.name ?? part.type), (part) => JSON.stringify(part.data ?? part, null, 2))
}

/** @param {import("./message.js").MessageView} message @returns {PartView} */
function textPart(message) {
  const { panel } = message
  const node = element("div", { part: "markdown" })
  let start = 0
  /** @type {import("./marks.js").Mark[]} where the text broke off and went on */
  let joins = []
  let words = ""
  const markdown = new GrowingMarkdown(node, {
    copyLabel: panel.words.copy,
    renderMath: panel.host.renderMath,
    images: panel.host.getAttribute("images"),
    isRead: () => !panel.scroller.isFollowing || node.querySelector(":focus"),
    between(from, to) {
      const after = from < 0 && start ? 0 : from // a place between two parts belongs to the first one
      const isHere = (/** @type {number} */ place) => place > after && place <= to
      const marks = panel.marks.of(message.message).filter((mark) => isHere(placeOf(mark, message.message.text) - start))
      return [...joins.filter((mark) => isHere(placeOf(mark, words))), ...marks].map(markNode)
    },
  })
  return {
    node,
    update({ text = "", joins: places = [] }, isOver, at) {
      start = at
      words = text
      if (places.length !== joins.length) {
        joins = places.map((at) => ({ message: "", at, text: panel.words.goesOn }))
        markdown.redraw(joins.at(-1)?.at ?? 0)
      }
      return markdown.update(text, isOver, () => panel.list.isLate)
    },
    remark: (at) => markdown.redraw(at - start),
  }
}

/** The text of a person, as it was typed; only code between two fences has its form. @param {import("./message.js").MessageView} message @returns {PartView} */
function typedPart({ panel }) {
  const lines = element("div", {})
  const addWords = (/** @type {string} */ words) => words && lines.append(element("p", { dir: "auto" }, words))
  const addCode = (/** @type {string} */ fence) => {
    const drawn = element("div", {})
    new GrowingMarkdown(drawn, { copyLabel: panel.words.copy }).update(fence, true)
    lines.append(...drawn.querySelectorAll(".code"))
  }
  return {
    node: element("div", { part: "markdown" }, lines),
    update({ text = "" }) {
      lines.replaceChildren()
      let [words, ...pieces] = text.split(/^```/m)
      for (let n = 0; n < pieces.length; n++) {
        const isCode = /^[^`\n]*\n/.test(pieces[n]) && /^[^\S\n]*(\n|$)/.test(pieces[n + 1] ?? "open")
        if (isCode) {
          addWords(words.replace(/\n$/, ""))
          addCode("```" + pieces[n] + "```")
          words = pieces[++n].replace(/^[^\S\n]*\n/, "")
        } else words += "```" + pieces[n]
      }
      addWords(words)
    },
  }
}

/** @param {string} name @param {(part: Part, isOver: boolean) => string} title @param {(part: Part) => string} words @returns {PartView} */
function foldedPart(name, title, words) {
  const [summary, text] = [element("summary", { part: "summary" }), element("pre", { dir: "auto" })]
  const node = element("details", { part: name }, summary, text)
  return {
    node,
    update(part, isOver) {
      setText(summary, title(part, isOver))
      growText(text, words(part))
      if (part.state) node.dataset.state = String(part.state)
    },
  }
}

/** @param {Part} part @param {boolean} isOver @param {import("./strings.js").Strings} words */
function toolState({ state, output }, isOver, words) {
  if (state === "error") return words.failed
  return output === undefined && state !== "done" && !isOver ? words.running : ""
}

/** @param {Part} part */
function toolWords({ input = "", output }) {
  return plain(input) + (output === undefined ? "" : `\n\n${plain(output)}`)
}

/** Return a text as it is, and other data as JSON. @param {unknown} value */
function plain(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2)
}

/** @param {Part} attempt */
function attemptWords({ parts }) {
  const known = /** @type {Part[]} */ (parts ?? [])
  return known.map((part) => (part.type === "tool" ? `${part.name} ${toolWords(part)}` : part.text)).filter(Boolean).join("\n\n")
}

/** @param {string} name @returns {PartView} */
function linkPart(name) {
  const node = element("a", { class: `source ${name}`, part: name, target: "_blank", rel: "noopener noreferrer nofollow", dir: "auto" })
  return {
    node,
    update({ url, title, name: own, filename, media_type }) {
      const address = typeof url === "string" && /^https?:\/\//i.test(url) ? url : ""
      setText(node, String(title ?? own ?? filename ?? (address.split(/[?#]/)[0].split("/").pop() || address || media_type || name)))
      if (address) node.href = address
      else node.removeAttribute("href")
    },
  }
}
