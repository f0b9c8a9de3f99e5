/**
 * Colours for finished code. The highlighter is fetched for the first code in a language that it knows; without it code
 * stays plain.
 */
import { element } from "../chat/elements.js"

const MAX_CODE = 20_000 // limit of characters: longer code takes more time than a frame has
const LONG_LINE = /[^\n]{1001}/ // code with such a line stays plain, because the highlighter takes quadratic time for a line
const SLICE_MS = 8

/** The names that authors write, by the highlighter's name of a language. */
const NAMES = "bash sh shell zsh console|c h cpp c++ cc hpp|css|diff patch|docker dockerfile|go golang|html htm vue svelte|java|js javascript jsx mjs cjs node|json json5 jsonc jsonl|py python python3|rs rust|sql mysql postgres postgresql sqlite|toml ini|ts typescript tsx mts cts|xml svg rss|yaml yml"
/** @type {Map<string, string>} */
const LANGUAGES = new Map(NAMES.split("|").flatMap((row) => {
  const names = row.split(" ")
  return names.map((name) => [name, names[0]])
}))

/** @type {{ code: Element, language: string }[]} */
const waiting = [] // the first one is being coloured

/** Colour `code`, soon, if its language is known and it is not too long. @param {Element} code @param {string} name */
export function highlight(code, name) {
  const language = LANGUAGES.get(name.toLowerCase())
  const text = code.textContent ?? ""
  if (!language || text.length > MAX_CODE || LONG_LINE.test(text)) return
  if (waiting.push({ code, language }) === 1) void highlightAll()
}

async function highlightAll() {
  try {
    const { tokenize } = await import("../vendor/highlight.js")
    let begun_ms = performance.now()
    for (let one; (one = waiting[0]); waiting.shift()) {
      const { code, language } = one
      colour(code, (onToken) => tokenize(code.textContent ?? "", language, onToken))
      if (performance.now() - begun_ms < SLICE_MS) continue
      await new Promise((resolve) => setTimeout(resolve))
      begun_ms = performance.now()
    }
  } catch {
    waiting.length = 0 // the file could not be fetched: the next code tries again
  }
}

/**
 * Put the tokens of `code` into elements that have their kinds as classes.
 *
 * @param {Element} code @param {(onToken: (text: string, kind?: string) => void) => void} tokenize
 */
function colour(code, tokenize) {
  /** @type {{ kind: string, text: string }[]} */
  const runs = []
  tokenize((text, kind = "") => {
    const last = runs.at(-1)
    if (last?.kind === kind) last.text += text
    else if (text) runs.push({ kind, text })
  })
  if (runs.map(({ text }) => text).join("") !== code.textContent) return
  code.replaceChildren(...runs.map(({ kind, text }) => (kind ? element("span", { class: `t-${kind}` }, text) : text)))
}
