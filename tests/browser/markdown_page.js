/** Functions for the tests of Markdown, which call them in the page. */
import { GrowingMarkdown } from "/holdfast/web/markdown.js"
import { appendBlocks } from "/holdfast/web/markdown_nodes.js"
import { parseBlocks } from "/holdfast/web/markdown_parser.js"
import { randomOf } from "/tests/web/random.js"
import { longBlocks, randomDocument } from "/tests/browser/markdown_documents.js"

/** Return the HTML of `text` that comes in pieces of `next()` characters. */
function grown(text, next = () => text.length) {
  const root = document.createElement("div")
  const markdown = new GrowingMarkdown(root)
  for (let at = 0; at < text.length; ) markdown.update(text.slice(0, (at = Math.min(text.length, at + next()))))
  markdown.update(text, true)
  return root.innerHTML
}

/** Return the HTML that the parser gives for the whole text at once. */
function direct(text) {
  const root = document.createElement("div")
  const env = { references: Object.create(null) }
  appendBlocks(parseBlocks(text.replace(/\r\n?/g, "\n"), env), root, env, {})
  return root.innerHTML
}

const withoutChunks = (html) => html.replace(/<div class="chunk">|<\/div>(?=<div class="chunk">|$)/g, "")

/** Return where two texts differ. */
function difference(name, one, other) {
  if (one === other) return []
  let at = 0
  while (one[at] === other[at]) at++
  return [[name, one.slice(Math.max(0, at - 60), at + 60), other.slice(Math.max(0, at - 60), at + 60)]]
}

window.tests = {
  random(from, count) {
    return Array.from({ length: count }, (_, n) => from + n).flatMap((seed) => {
      const text = randomDocument(seed, 8)
      const whole = grown(text)
      const { upTo } = randomOf(seed)
      return [
        ...difference(`${seed}: parser`, withoutChunks(whole), direct(text)),
        ...difference(`${seed}: 1`, whole, grown(text, () => 1)),
        ...difference(`${seed}: random`, whole, grown(text, () => 1 + upTo(20))),
      ]
    })
  },
  long(name, length, step, first = step) {
    const text = longBlocks(length)[name]
    const whole = grown(text)
    const steps = [first]
    const isCut = name.startsWith("a paragraph") // after 16,384 characters, which the parser alone does not
    return [
      ...(isCut ? [] : difference("parser", withoutChunks(whole), direct(text))),
      ...difference(`pieces of ${step}`, whole, grown(text, () => steps.pop() ?? step)),
    ]
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
  grown,
  direct,
  names: Object.keys(longBlocks(10)),
}
