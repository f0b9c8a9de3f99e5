/** Functions for the tests of Markdown, which call them in the page. */
import { element } from "/tenuto/web/chat/elements.js"
import { LAUNCHER_STYLE, PANEL_STYLE, sheetOf } from "/tenuto/web/chat/style.js"
import { GrowingMarkdown } from "/tenuto/web/markdown/markdown.js"
import { appendBlocks } from "/tenuto/web/markdown/nodes.js"
import { parseBlocks } from "/tenuto/web/markdown/parser.js"
import { randomOf } from "/tests/web/random.js"
import { hostileShapes, longBlocks, randomDocument } from "/tests/browser/markdown_documents.js"
import { reference, shown } from "/tests/browser/markdown_reference.js"

/** Elements of answers, with those of a block of code, and their attributes. */
const ELEMENTS = new Set(
  "p h3 h4 h5 h6 ul ol li blockquote pre code strong em s br hr table thead tbody tr th td a input span div button".split(" "),
)
const ATTRIBUTES = new Set("dir class part type disabled checked aria-label start style href target rel tabindex".split(" "))

/** Let `text` come in pieces of `next()` characters. Return its element. */
function grow(text, next = () => text.length, options = {}) {
  const root = document.createElement("div")
  const markdown = new GrowingMarkdown(root, options)
  for (let at = 0; at < text.length; ) markdown.update(text.slice(0, (at = Math.min(text.length, at + next()))))
  markdown.update(text, true)
  for (const one of root.querySelectorAll("p")) {
    const joined = one.cloneNode(true)
    joined.normalize()
    if (!joined.isEqualNode(one)) throw new Error(`text in neighbouring nodes: ${text.slice(0, 60)}`)
  }
  return root
}

const grown = (text, next, options) => grow(text, next, options).innerHTML

/** Return the HTML that the parser gives for the whole text at once. */
function direct(text) {
  const root = document.createElement("div")
  const env = { references: Object.create(null) }
  appendBlocks(parseBlocks(text.replace(/\r\n?/g, "\n"), env), root, env, {})
  return root.innerHTML
}

const withoutChunks = (html) => html.replace(/<span class="lines">([^<]*)<\/span>/g, "$1").replace(/<div class="(?:group|chunk)">|<\/div>(?=<div class="chunk">)|<\/div><\/div>(?=<div class="group">|$)/g, "")

/** Return where two texts differ. */
function difference(name, one, other) {
  if (one === other) return []
  let at = 0
  while (one[at] === other[at]) at++
  return [[name, one.slice(Math.max(0, at - 60), at + 60), other.slice(Math.max(0, at - 60), at + 60)]]
}

/** Return where the nodes of `text` depend on its pieces. */
function dependence(name, text, options) {
  const whole = grown(text, undefined, options)
  const { upTo } = randomOf(text.length)
  return [
    ...difference(`${name}: 1`, whole, grown(text, () => 1, options)),
    ...difference(`${name}: 3`, whole, grown(text, () => 3, options)),
    ...difference(`${name}: random`, whole, grown(text, () => 1 + upTo(20), options)),
  ]
}

/** Return a line for each 37th character after `from`, up to `to`. */
function marks(from, to) {
  const places = Array.from({ length: Math.ceil(to / 37) + 1 }, (_, n) => n * 37).filter((at) => at > from && at <= to)
  return places.map((at) => Object.assign(document.createElement("hr"), { id: at }))
}

/** Draw a formula as its source in marks of its own. */
function formula(tex, isBlock) {
  const node = document.createElement("var")
  node.append(`${isBlock}:${tex}`)
  return node
}

/** Call `change` in the next frame, and return when that frame has been drawn: a timer fires after the frame's task. */
const frame = (change = () => {}) => new Promise((resolve) => requestAnimationFrame(() => (change(), setTimeout(resolve))))

/** A message as in the panel, with its style; `step` lets its text grow. */
let stage = { text: "", markdown: null, log: null, node: null }

const violations = []
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective))

window.tests = {
  random(from, count) {
    return Array.from({ length: count }, (_, n) => from + n).flatMap((seed) => {
      const text = randomDocument(seed, 8)
      return [
        ...difference(`${seed}: parser`, withoutChunks(grown(text)), direct(text)),
        ...dependence(seed, text),
        ...dependence(`${seed}: marks`, text, { between: marks }),
      ]
    })
  },
  randomFormulas(from, count) {
    return Array.from({ length: count }, (_, n) => from + n).flatMap((seed) => {
      return dependence(seed, randomDocument(seed, 8, ["$x$", "$$", "\n$$", "\n\\[", "\\]", "\\(y", "\\)", "$5", "\n", "\n- "]), { renderMath: formula })
    })
  },
  /** Return where the nodes of one long block depend on its pieces: one of `first` characters, then those of `step`. */
  long(name, length, step, first = step) {
    const text = longBlocks(length)[name].slice(0, length)
    const whole = grown(text)
    const steps = [first]
    // A block is cut after 16,384 characters, a paragraph after 8,192, and one of more than 4,096 is no heading or table:
    // not so in the parser.
    const isCut = text.length > (name.startsWith("a paragraph") ? 8_000 : 16_000) || /underline|before a/.test(name)
    const count = (html) => String([/<li/g, /<td/g, /<code/g].map((one) => html.match(one)?.length))
    return [
      ...(isCut ? [] : difference("parser", withoutChunks(whole), direct(text))),
      ...(name.startsWith("a paragraph") ? [] : difference("items, cells or code", count(whole), count(direct(text)))),
      ...difference(`pieces of ${step}`, whole, grown(text, () => steps.pop() ?? step)),
    ]
  },
  /** Return where the nodes of one long block depend on pieces of random lengths, at most `most`. */
  longInRandom(name, length, most) {
    const text = longBlocks(length)[name]
    const { upTo } = randomOf(length)
    return difference(name, grown(text), grown(text, () => 1 + upTo(most)))
  },
  /** Return how many one-character steps show text that later vanishes, and how many steps there are. */
  vanishing(text) {
    const words = (node) => node.textContent.replace(/\s+/g, " ").trimEnd()
    const [end, root] = [document.createElement("div"), document.createElement("div")]
    new GrowingMarkdown(end).update(text, true)
    const markdown = new GrowingMarkdown(root)
    const steps = Array.from(text, (_, n) => n + 1)
    return [steps.filter((at) => (markdown.update(text.slice(0, at)), !words(end).startsWith(words(root)))).length, steps.length]
  },
  /** Return the texts of links whose address they are, in `text` that came in pieces of `step` characters. */
  links(text, step) {
    const links = [...grow(text, () => step).querySelectorAll("a")]
    return links.filter((one) => one.href === new URL(one.textContent, "https://x.example").href && one.rel).map((one) => one.textContent)
  },
  /** Return the addresses of the links in each beginning of `text`. */
  linksOfSteps(text) {
    const root = document.createElement("div")
    const markdown = new GrowingMarkdown(root)
    return Array.from(text, (_, n) => (markdown.update(text.slice(0, n + 1)), [...root.querySelectorAll("a")].map((one) => one.href)))
  },
  /** Put `text`, in at most `cuts` pieces, into the page. Return what may not be there. */
  forbidden(text, cuts) {
    const node = document.createElement("div")
    document.getElementById("root").replaceChildren(node)
    const markdown = new GrowingMarkdown(node, { renderMath: () => null })
    for (let n = 1; n <= cuts; n++) {
      markdown.update(text.slice(0, Math.ceil((text.length * n) / cuts)))
    }
    markdown.update(text, true)
    return [...node.querySelectorAll("*")].flatMap((one) => [
      ...(ELEMENTS.has(one.localName) ? [] : [one.localName]),
      ...[...one.attributes].filter(({ name }) => !ATTRIBUTES.has(name)).map(({ name }) => `${one.localName} ${name}`),
      ...(one.localName === "a" && !["http:", "https:", "mailto:"].includes(one.protocol) ? [one.href] : []),
      ...(one.style.length > (one.style.textAlign ? 1 : 0) ? [one.style.cssText] : []),
    ])
  },
  /** Return the forbidden members of each beginning of `text`, and of `text` in two pieces. */
  forbiddenAtEachCut(text) {
    const wrong = []
    for (let at = 1; at <= text.length; at++) {
      wrong.push(...this.forbidden(text.slice(0, at), 1))
      const node = document.createElement("div")
      const markdown = new GrowingMarkdown(node)
      markdown.update(text.slice(0, at))
      markdown.update(text, true)
      wrong.push(...difference(`cut at ${at}`, grown(text), node.innerHTML))
    }
    return wrong
  },
  /** Put an answer into the page. */
  grow(text) {
    document.getElementById("root").replaceChildren(grow(text))
  },
  /** Return the kinds of the tokens of `text` once that of a later fence is coloured; they do not depend on the pieces. */
  async coloured(text) {
    const marker = "\n\n```js\nlet last = 1\n```\n"
    const roots = [undefined, () => 1, () => 3].map((next) => grow(text, next))
    const last = grow(marker).querySelector("code")
    if (!last.firstElementChild) {
      await new Promise((resolve) => new MutationObserver(resolve).observe(last, { childList: true }))
    }
    const [whole, ...others] = roots.map((root) => root.innerHTML)
    if (others.some((one) => one !== whole)) throw new Error(`${whole} is not ${others.join(" and ")}`)
    return [...new Set([...roots[0].querySelectorAll("code span:not(.lines)")].map((node) => node.className))]
  },
  /** Complete `text`, which has code with colours, by the definition of a link. Return what stays. */
  async define(text, definition) {
    const root = document.createElement("div")
    const markdown = new GrowingMarkdown(root)
    const blocks = () => [...root.querySelectorAll(".chunk > *")]
    markdown.update(text)
    const code = root.querySelector("pre code")
    if (!code.firstElementChild) {
      await new Promise((resolve) => new MutationObserver(resolve).observe(code, { childList: true }))
    }
    const before = blocks()
    markdown.update(text + definition, true)
    const kept = blocks().filter((node) => before.includes(node))
    const isColoured = root.contains(code) && code.childElementCount > 0
    code.replaceChildren(code.textContent)
    const isSame = root.innerHTML === grown(text + definition)
    return { before: before.length, kept: kept.length, links: root.querySelectorAll("a").length, isColoured, isSame }
  },
  /** Return the HTML of `text` with formulas, and the formulas. */
  formulas(text, step) {
    const root = grow(text, () => step, { renderMath: formula })
    const seen = [...root.querySelectorAll(".math > var")].map((node) => {
      const [isBlock, ...tex] = node.textContent.split(":")
      return [tex.join(":"), isBlock === "true"]
    })
    return [root.innerHTML, seen]
  },
  /** Return the examples that are not as their HTML says, with both forms. @param {{ markdown: string, html: string }[]} examples */
  different(examples) {
    return examples.flatMap(({ markdown, html }, n) => {
      const [one, other] = [shown(grow(markdown)), reference(html)]
      return one === other ? [] : [[n, one, other]]
    })
  },
  /** Make an empty message, whose text will grow to `text`. */
  async stage(text) {
    const host = document.createElement("tenuto-stage")
    const shadow = host.attachShadow({ mode: "open" })
    shadow.adoptedStyleSheets = [sheetOf(LAUNCHER_STYLE), sheetOf(PANEL_STYLE)]
    const node = element("div", { class: "markdown" })
    const message = element("article", { class: "message assistant", "data-status": "streaming" }, element("div", { class: "body" }, node))
    const log = element("div", { class: "log" }, element("div", { class: "messages" }, message))
    shadow.append(element("section", { class: "panel" }, log))
    document.getElementById("root").replaceChildren(host)
    stage = { text, log, node, markdown: new GrowingMarkdown(node) }
    await frame()
  },
  /** Let the text grow by `piece` characters in each frame, from `start` to `end`. Return when the last one has been drawn. */
  async steps(start, end, piece) {
    for (let at = start; at < end; at += piece) {
      await frame(() => {
        stage.markdown.update(stage.text.slice(0, at + piece), at + piece >= stage.text.length)
        stage.log.scrollTop = stage.log.scrollHeight
      })
    }
  },
  /** Return the sides of the room for the marks of lists, of the lines of quotes, and of the first column of a table. */
  sides() {
    const all = (name) => [...stage.node.querySelectorAll(name)]
    const [one, two] = all("th").map((node) => node.getBoundingClientRect().left)
    const isLeft = [
      ...all("li").map((item) => {
        const [inner, outer] = [item, item.parentElement].map((node) => node.getBoundingClientRect())
        return inner.left - outer.left > 16 && inner.right === outer.right
      }),
      ...all("blockquote").map((quote) => parseFloat(getComputedStyle(quote).borderLeftWidth) > 0),
      one < two,
    ]
    return isLeft.map((one) => (one ? "left" : "right"))
  },
  stagedTarget: () => stage.text.length,
  stagedLength: () => stage.node.textContent.length,
  longBlock: (name, length) => longBlocks(length)[name].slice(0, length),
  dependence,
  grown,
  direct,
  violations,
  shapes: hostileShapes,
  names: Object.keys(longBlocks(10)),
}
