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
const examples = tests.map((one) => {
  let hasHtml = false
  marked.walkTokens(marked.lexer(one.markdown), ({ type }) => {
    hasHtml ||= type === "html"
  })
  return { ...one, hasHtml }
})
console.log(JSON.stringify({ examples, answers }))
