/** The scoreboard, and the plain stream beside it. @module */
import { at, counted, make, say, size } from "./dom.js"

const BOXES = [
  { id: "reload", title: "Reload the page", hint: "The answer comes back and goes on", label: "Reload" },
  { id: "join", title: "Join from another window", hint: "Another person sees the same text", label: "Open" },
  { id: "kill", title: "Kill the server", hint: "", label: "Kill it" },
  { id: "crash", title: "Crash the agent", hint: "Another takes over mid-sentence", label: "Crash it" },
  { id: "offline", title: "Go offline", hint: "For ten seconds. Keep typing.", label: "Cut me off" },
]

/** Build the boxes. @param {Record<string, any>} actions what each button does */
export const buildBoard = (actions) => at("boxes").append(...BOXES.map(({ id, title, label }) => {
  const button = make("button", { className: "button", id: `do-${id}`, onclick: () => actions[id]() }, label)
  return make("li", { id: `box-${id}` }, make("span", { className: "tick" }), make("h3", {}, title), make("span", { className: "count" }), button, make("p"))
}))

/** @param {ReturnType<typeof import("./trials.js").watchTrials>} trials @param {{ kill: string }} server */
export function drawBoard({ newest, notes, score: { kept }, plain }, server) {
  const answer = newest()
  say(at("score-hint"), `${!answer ? "Ask something. " : answer.status === "complete" ? `Saved · ${counted(size(answer.text))}. ` : ""}Each box ticks itself when the answer survives.`)
  for (const { id, hint } of BOXES) {
    const { count = 0, isOk = false, words = "" } = kept.boxes[id] ?? {}
    const [tick, , times, button, line] = at(`box-${id}`).children
    at(`box-${id}`).dataset.state = count ? (isOk ? "ok" : "lost") : "open"
    Object.assign(tick, { role: count ? "img" : null, ariaLabel: count ? (isOk ? "survived" : "lost text") : null })
    say(times, count > 1 ? `${count}×` : "")
    say(line, notes[id] || words || hint || server.kill)
    button.disabled = !answer || (id === "crash" && answer.status !== "streaming")
  }
  const totals = { reloads: counted(kept.reloads, "reload"), deaths: counted(kept.deaths, "server death"), lost: counted(kept.lost, "character lost", "characters lost") }
  for (const [id, words] of Object.entries(totals)) words.split(/ (.*)/).slice(0, 2).forEach((one, n) => say(at(id).children[n], one))
  say(at("show-score"), `Try to break this answer · ${BOXES.filter(({ id }) => kept.boxes[id]?.isOk).length} of ${BOXES.length}`)
  const length = counted(size(plain.text))
  const states = { idle: kept.plainLost ? "" : "It begins with your question.", streaming: `${length} so far, in this page alone.`, complete: `Complete: ${length}, in this page alone.`, cut: `Cut off after ${length}. The rest never comes.` }
  at("plain").dataset.state = kept.plainLost || plain.state === "cut" ? "lost" : plain.state
  say(at("plain-text"), plain.text.slice(-200) || (kept.plainLost ? "Empty since the reload." : ""))
  say(at("plain-words"), states[plain.state])
  say(at("plain-lost"), counted(kept.plainLost))
  at("plain-loss").hidden = !kept.plainLost
}
