/**
 * The demo page: a conversation to break.
 *
 * Everything durable is the client's and the server's work; this file wires the view to the page, counts, and says
 * what happened. Query parameters: `channel` (default `demo:main`) and `transport` (`ws` or `sse`).
 * @module
 */

import { connect } from "../client.js"
import { countPoints } from "../text.js"
import { Asking, stop } from "./asking.js"
import { Journal } from "./journal.js"
import { Transcript } from "./transcript.js"
import { caughtUp, counted, grouped, sized } from "./words.js"

/** @typedef {import("../client.js").Snapshot} Snapshot */
/** @typedef {import("../view.js").Message} Message */

/** @param {string} id @returns {any} the element, whatever its kind: the page is ours and never without it */
const at = (id) => document.getElementById(id)

const parameters = new URLSearchParams(location.search)
const channelName = parameters.get("channel") || "demo:main"
const transportName = parameters.get("transport") ?? ""
/** @type {"auto" | "websocket" | "sse"} */
const transport = transportName === "sse" ? "sse" : transportName === "ws" ? "websocket" : "auto"

const channel = connect({ url: "/holdfast", transport }).channel(channelName)
const reloads = countReloads()
const journal = new Journal(at("journal"), at("status"), sessionStorage)
const transcript = new Transcript(at("transcript"), at("messages"), (follows) => (at("newest").hidden = follows))
const asking = new Asking({
  channel: channelName,
  storage: sessionStorage,
  onChange: () => render(),
  onRefused({ text }, why) {
    if (!at("question").value) at("question").value = text
    journal.say(`not asked: ${why}`)
  },
})

const known = {
  /** @type {object} */
  catchUp: channel.stats.catchUp,
  state: "connecting",
  pid: 0,
  /** Answers seen while they streamed: when they end, they are compared with what is stored. @type {Set<string>} */
  streaming: new Set(),
  /** @type {string | null} */
  stopping: null,
}

// Showing -----------------------------------------------------------------------------------------------------------

function render() {
  const snapshot = channel.getSnapshot()
  const { messages, more, state } = snapshot
  const ids = new Set(messages.map(({ id }) => id))
  const onTheirWay = asking.waiting.filter(({ id }) => !ids.has(id)).map(asMessage)
  transcript.show([...messages, ...onTheirWay])
  at("welcome").hidden = state !== "live" || messages.length + onTheirWay.length > 0
  at("earlier").hidden = !more
  renderConnection(snapshot)
  renderStop(messages)
  renderCounters()
  noticeEnds(messages)
  noticeCatchUp(messages)
}

/** @param {{ id: string, text: string }} question */
function asMessage({ id, text }) {
  return { id, role: "user", author: "you", status: "sending", parts: [{ type: "text", text }] }
}

/** @param {Snapshot} snapshot */
function renderConnection({ state, error }) {
  const over = { auto: "", websocket: " over WebSocket", sse: " over SSE" }[transport]
  const words = {
    connecting: "connecting…",
    live: `live${over}`,
    reconnecting: "away, trying again…",
    closed: error ? `closed: ${error.message}` : "closed",
  }
  at("connection").dataset.state = state
  setText(at("connection-text"), words[state])
  if (state === known.state) return
  if (state === "reconnecting" && known.state === "live") journal.say("connection lost, trying again…")
  if (state === "live") {
    asking.hurry()
    void renderInfo()
  }
  known.state = state
}

/** @param {readonly Message[]} messages */
function renderStop(messages) {
  const id = streamingAnswer(messages)?.id ?? null
  if (id !== known.stopping) known.stopping = null
  at("stop").hidden = id === null
  at("stop").disabled = known.stopping !== null
  setText(at("stop"), known.stopping === null ? "Stop" : "Stopping…")
  document.title = id === null ? "Holdfast demo" : "● answering – Holdfast demo"
}

function renderCounters() {
  const { events, bytes, reconnects } = channel.stats
  setText(at("count-reloads"), grouped(reloads))
  setText(at("count-reconnects"), grouped(reconnects))
  setText(at("count-events"), grouped(events))
  setText(at("count-bytes"), sized(bytes))
  setText(at("summary-counters"), `${counted(reloads, "reload")} · ${counted(events, "event")} · ${sized(bytes)}`)
}

/** What to type to kill the server: another line after every restart. */
async function renderInfo() {
  try {
    const { pid, kill } = await (await fetch("/demo/info")).json()
    setText(at("kill"), kill)
    at("copy-kill").disabled = false
    if (known.pid && known.pid !== pid) journal.say(`the server is a new process: ${pid}`)
    known.pid = pid
  } catch {
    // Gone again already: the next time we are live this is asked anew.
  }
}

// Noticing ----------------------------------------------------------------------------------------------------------

/** @param {readonly Message[]} messages */
function noticeCatchUp(messages) {
  const { catchUp, reconnects } = channel.stats
  if (catchUp === known.catchUp) return
  known.catchUp = catchUp
  const running = messages.find(({ status }) => status === "streaming")
  const sentence = caughtUp(catchUp, { isReload: reconnects === 0, runningPoints: running ? countPoints(textOf(running)) : 0 })
  if (sentence) journal.say(sentence)
}

/** @param {readonly Message[]} messages */
function noticeEnds(messages) {
  for (const message of messages) {
    const { id, status } = message
    if (status === "streaming") {
      if (!known.streaming.has(id)) journal.tell("answering…")
      known.streaming.add(id)
    } else if (known.streaming.delete(id)) {
      journal.say(`answer ${status}: ${counted(countPoints(textOf(message)), "character")}`)
      void prove(message)
    }
  }
}

/** Compare what is shown with what the server has stored, and say so under the message. @param {Message} message */
async function prove({ id, version }) {
  try {
    const path = `/holdfast/v1/channels/${encodeURIComponent(channelName)}/messages/${encodeURIComponent(id)}`
    const { message } = await (await fetch(path)).json()
    const shown = channel.getSnapshot().messages.find((candidate) => candidate.id === id)
    if (message.version !== version || shown?.version !== version) return // it was changed since: another comparison's job
    const isEqual = textOf(message) === transcript.textOf(id)
    const size = counted(countPoints(textOf(message)), "character")
    transcript.prove(id, isEqual ? `what you see is what is stored: ${size}` : "what you see is not what is stored", isEqual)
  } catch {
    // The server is away: then there is nothing to compare with.
  }
}

// Doing -------------------------------------------------------------------------------------------------------------

/** @param {string} text */
function ask(text) {
  if (!text.trim()) return
  asking.ask(text)
  transcript.follow()
}

async function stopAnswer() {
  const answer = streamingAnswer(channel.getSnapshot().messages)
  if (!answer) return
  known.stopping = answer.id
  render()
  const why = await stop(channelName, answer.id)
  if (!why) return
  known.stopping = null
  journal.say(`not stopped: ${why}`)
  render()
}

/** @param {KeyboardEvent} event */
function sendOnEnter(event) {
  // Enter also picks a word in an input method; Safari reports that one only by its old key code.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return
  event.preventDefault()
  at("composer").requestSubmit()
}

async function copyKill() {
  try {
    await navigator.clipboard.writeText(at("kill").textContent)
    journal.tell("copied")
  } catch {
    getSelection()?.selectAllChildren(at("kill"))
    journal.tell("selected: copy it with the keyboard")
  }
}

// Helpers -----------------------------------------------------------------------------------------------------------

/** @param {Message} message */
function textOf({ parts = [] }) {
  return parts.map(({ type, text }) => (type === "text" ? text : "")).join("")
}

/** @param {readonly Message[]} messages */
function streamingAnswer(messages) {
  return messages.filter(({ status }) => status === "streaming").at(-1)
}

/** How often this window was reloaded. */
function countReloads() {
  const key = "holdfast-demo.reloads"
  const [navigation] = performance.getEntriesByType("navigation")
  const isReload = navigation instanceof PerformanceNavigationTiming && navigation.type === "reload"
  const count = (Number(sessionStorage.getItem(key)) || 0) + Number(isReload)
  sessionStorage.setItem(key, String(count))
  return count
}

/** @param {HTMLElement} element @param {string} text */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text
}

/** This page's address with other parameters. @param {Record<string, string>} changes */
function address(changes) {
  const wanted = new URLSearchParams({ ...Object.fromEntries(parameters), ...changes })
  const query = wanted.toString().replaceAll("%3A", ":")
  return query ? `/?${query}` : "/"
}

// Wiring ------------------------------------------------------------------------------------------------------------

at("composer").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
  event.preventDefault()
  ask(at("question").value)
  at("question").value = ""
  at("question").focus()
})
at("question").addEventListener("keydown", sendOnEnter)
at("stop").addEventListener("click", stopAnswer)
at("newest").addEventListener("click", () => transcript.follow())
at("earlier").addEventListener("click", () => channel.history().catch((error) => journal.say(error.message)))
at("copy-kill").addEventListener("click", copyKill)
for (const suggestion of at("suggestions").children) {
  suggestion.addEventListener("click", () => ask(suggestion.textContent))
}

at("new-chat").href = address({ channel: `demo:${crypto.randomUUID().slice(0, 8)}` })
at("second-window").href = address({})
at("over-sse").href = address({ transport: "sse" })
at("over-ws").href = address({ transport: "ws" })

// Beside the conversation when there is room, folded away above it when there is not.
const isWide = matchMedia("(min-width: 60rem)")
const fold = () => (at("panel").open = isWide.matches)
isWide.addEventListener("change", fold)
fold()
if (matchMedia("(pointer: fine)").matches) at("question").focus()

addEventListener("online", () => asking.hurry())
channel.subscribe(render)
asking.start()
render()
