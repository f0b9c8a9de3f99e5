/** The words of the chat element: each is used, and each language has all of them. */
import assert from "node:assert/strict"
import { readFileSync, readdirSync } from "node:fs"
import { test } from "node:test"

import { requestWords } from "../../tenuto/web/chat/error_words.js"
import { STRINGS, stringsOf } from "../../tenuto/web/chat/strings.js"

const folder = new URL("../../tenuto/web/", import.meta.url)
const isCode = (/** @type {string} */ name) => /^(chat\/(?!strings).*|element)\.js$/.test(name)
const code = readdirSync(folder, { encoding: "utf8", recursive: true }).filter(isCode).map((name) => readFileSync(new URL(name, folder), "utf8")).join("\n")

test("a message that an earlier page has left without a sender asks the person whose it is", () => {
  assert.equal(requestWords(STRINGS, "author_mismatch"), "Did you send this? Try again.")
})

test("each word is used", () => {
  assert.deepEqual(Object.keys(STRINGS).filter((name) => !new RegExp(`\\bwords\\.${name}\\b|(: |\\?\\? )"${name}"`).test(code)), [])
})

test("German has the same words, and no word of English is left", async () => {
  const german = await stringsOf("de-AT")
  assert.deepEqual(Object.keys(german).sort(), Object.keys(STRINGS).sort())
  const alike = Object.keys(STRINGS).filter((name) => german[name] === STRINGS[name])
  assert.deepEqual(alike, ["heading", "online"]) // "Chat", "Online"
})

test("other languages have the English words, at once", () => {
  for (const lang of [null, "", "en", "den", "fr"]) assert.equal(stringsOf(lang), STRINGS)
})

test("a word has no blanks at its ends, and one character for an ellipsis", async () => {
  for (const words of [STRINGS, await stringsOf("de")]) {
    for (const word of Object.values(words)) assert.ok(word && word === word.trim() && !word.includes("..."), word)
  }
})
