/** The page "One tag": three ways to add a chat, each beside its code. The code is read from the files that run. @module */
import { at, copyBy, make, say } from "./dom.js"

const read = async (/** @type {string} */ path) => (await fetch(path)).text()
const runReact = async () => { // a script has compiled the JSX
  const [{ createElement, createRoot }, { default: App }] = await Promise.all([import("./vendor/react.js"), import("./vendor/react_chat.js")])
  if (!at("react").firstChild) createRoot(at("react")).render(createElement(App))
}
const WAYS = [
  { id: "html", name: "One tag", about: "This is the source of this page. The chat in the corner is what it makes.", code: async () => (await read(location.href)).split(/<!-- (?:begin|end) -->/)[1].replace(/^ {4}/gm, "") },
  { id: "jsx", name: "React", about: "This component runs below, in the same conversation as the chat in the corner. examples/react is a whole app in this way.", code: () => read("/tenuto/web/demo/react_chat.jsx"), run: runReact },
  { id: "js", name: "Plain JS", about: "This module runs below, in the same conversation as the chat in the corner.", code: () => read("/tenuto/web/demo/plain.js"), run: () => import("./plain.js") },
]

/** @param {{ id: string, about: string, code: () => Promise<string>, run?: () => unknown }} way */
async function choose({ id, about, code, run }) {
  for (const way of WAYS) at(`way-${way.id}`).ariaPressed = String(way.id === id)
  for (const [place, text] of Object.entries({ language: id, about, code: (await code()).trim() })) say(at(place), text)
  await run?.() // before its form can be sent
  for (const [stage, of] of [["stage", "js"], ["react", "jsx"]]) at(stage).hidden = id !== of
}

at("ways").append(...WAYS.map((way) => make("button", { id: `way-${way.id}`, onclick: () => choose(way) }, way.name)))
at("copy").onclick = () => copyBy(at("copy"), at("code").textContent)
if (innerWidth > 700) document.querySelector("tenuto-chat")?.setAttribute("open", "") // on a phone it would cover the page
await choose(WAYS[0])
