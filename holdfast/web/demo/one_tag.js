/** The page "One tag": three ways to add a chat, each beside its code. The code is read from the files that run. @module */
import { at, copyBy, make, say } from "./dom.js"

const read = async (/** @type {string} */ path) => (await fetch(path)).text()
const WAYS = [
  { id: "html", name: "One tag", about: "This is the source of this page. The chat in the corner is what it makes.", code: async () => (await read(location.href)).split(/<!-- (?:begin|end) -->/)[1].replace(/^ {4}/gm, "") },
  { id: "jsx", name: "React", about: "React needs a build, so this code does not run here. examples/react is a whole app in this way.", code: () => read("/holdfast/web/demo/react_chat.jsx") },
  { id: "js", name: "Plain JS", about: "This module runs below, in the same conversation as the chat in the corner.", code: () => read("/holdfast/web/demo/plain.js") },
]

/** @param {typeof WAYS[number]} way */
async function choose({ id, about, code }) {
  for (const way of WAYS) at(`way-${way.id}`).ariaPressed = String(way.id === id)
  say(at("language"), id)
  say(at("about"), about)
  say(at("code"), (await code()).trim())
  at("stage").hidden = id !== "js"
  if (id === "js") await import("./plain.js")
}

at("ways").append(...WAYS.map((way) => make("button", { id: `way-${way.id}`, onclick: () => choose(way) }, way.name)))
at("copy").onclick = () => copyBy(at("copy"), at("code").textContent)
if (innerWidth > 700) document.querySelector("holdfast-chat")?.setAttribute("open", "") // on a phone it would cover the page
await choose(WAYS[0])
