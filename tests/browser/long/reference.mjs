/**
 * Print Markdown and the HTML of parsers that are not ours, as JSON: the examples of the CommonMark specification, and the
 * answers of `answers.md` by `marked` with GitHub's extensions.
 */
import { readFileSync } from "node:fs"

import { tests } from "commonmark-spec"
import { marked } from "marked"

const text = readFileSync(new URL("answers.md", import.meta.url), "utf8")
const answers = text.split(/^%% /m).slice(1).map((one) => {
  const end = one.indexOf("\n")
  const markdown = one.slice(end + 1)
  return { name: one.slice(0, end), markdown, html: marked.parse(markdown) }
})
const TAG = /<(?![a-z][a-z0-9+.-]+:|[^\s<>]+@)[a-z/!?]/i // of an element, a comment or a declaration, not an address in <>
const examples = tests.map(({ number, markdown, html }) => ({
  number, markdown: tabs(markdown), html: tabs(html), hasHtml: TAG.test(markdown),
}))
console.log(JSON.stringify({ examples, answers }))

/** The specification writes tabs as arrows. @param {string} text */
function tabs(text) {
  return text.replaceAll("→", "\t")
}
