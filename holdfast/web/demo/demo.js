/**
 * The demo page: a conversation of people and agents, to break.
 *
 * The client and the server keep all durable state; this file connects the view to the page, counts, and reports
 * events. Query parameters: `channel` (default `demo:main`), `transport` (`ws`, `sse` or `poll`), and `as`, a name.
 * @module
 */

import { connect } from "../client.js"
import { countPoints } from "../view.js"
import { Approvals } from "./approvals.js"
import { Journal } from "./journal.js"
import { drawName, rename, whoAmI } from "./me.js"
import { People, Typing, TYPING_AGAIN_MS } from "./people.js"
import { Transcript } from "./transcript.js"
import { UnsentQuestions } from "./unsent.js"
import { breakOf, caughtUp, counted, grouped, nameOf, outcomeOf, pendingOf, sized, typingOf } from "./words.js"

/** @typedef {import("../client.js").Snapshot} Snapshot */
/** @typedef {import("../view.js").Message} Message */
/** @typedef {import("../view.js").Command} Command */
/** @typedef {import("../view.js").Member} Member */

/** @param {string} id @returns {any} the element, typed loosely: index.html has every id that this file uses */
const at = (id) => document.getElementById(id)

const parameters = new URLSearchParams(location.search)
const channelName = parameters.get("channel") || "demo:main"
const transportName = parameters.get("transport") ?? ""
/** @type {"auto" | "websocket" | "sse" | "poll"} */
const transport = transportName === "sse" || transportName === "poll" ? transportName : transportName === "ws" ? "websocket" : "auto"
const KNOWN_COMMANDS = 100

let me = whoAmI(parameters.get("as"), sessionStorage)
const channel = connect({ url: "/holdfast", transport, client: me.id }).channel(channelName)
const reloads = countReloads()
const journal = new Journal(at("journal"), at("status"), sessionStorage)
const transcript = new Transcript(at("transcript"), at("messages"), byWhom, (follows) => (at("newest").hidden = follows))
const people = new People(at("people"), me.id, (sentence) => journal.record(sentence))
const typing = new Typing(() => setText(at("typing"), typingOf(typing.names)))
const approvals = new Approvals(at("approvals"), reply)
const unsent = new UnsentQuestions({
  channel: channelName,
  storage: sessionStorage,
  send: store,
  onChange: () => render(),
  onRefused({ text }, why) {
    if (!at("question").value) at("question").value = text
    journal.record(`the question was not sent: ${why}`)
  },
})

const known = {
  /** @type {object} */
  catchUp: channel.stats.catchUp,
  state: "connecting",
  pid: 0,
  /** Answers that were shown while they streamed; at their end they are compared with the stored text. @type {Set<string>} */
  streaming: new Set(),
  /** The number of breaks of each answer. @type {Map<string, number>} */
  breaks: new Map(),
  /** By id, for when their reply comes. @type {Map<string, Command>} */
  commands: new Map(),
  /** Names by client id, also of people who have left. @type {Map<string, string>} */
  names: new Map(),
  /** The ids that this window has sent a cancel for. @type {Set<string>} */
  stopping: new Set(),
  typedAt: 0,
}

// Showing -----------------------------------------------------------------------------------------------------------

function render() {
  const snapshot = channel.getSnapshot()
  const { messages, more, state, presence, commands } = snapshot
  const ids = new Set(messages.map(({ id }) => id))
  const notStored = unsent.waiting.filter(({ id }) => !ids.has(id)).map(asMessage)
  for (const member of presence.members) remember(member.id, nameOf(member))
  for (const { author, meta } of messages) if (author && typeof meta?.name === "string") remember(author, meta.name)
  transcript.show([...messages, ...notStored])
  at("welcome").hidden = state !== "live" || messages.length + notStored.length > 0
  at("earlier").hidden = !more
  renderPeople(snapshot)
  approvals.show(commands)
  renderConnection(snapshot)
  renderRunning(snapshot)
  renderCounters()
  noticeCommands(commands)
  noticeBreaks(messages)
  noticeEnds(messages)
  noticeCatchUp(messages)
}

/** @param {{ id: string, text: string }} question */
function asMessage({ id, text }) {
  return { id, role: "user", author: me.id, status: "sending", parts: [{ type: "text", text }] }
}

/** @param {{ author?: string, role: string }} message */
function byWhom({ author, role }) {
  return { name: author === me.id ? me.name : author ? naming(author) : role, isMine: author === me.id }
}

/** @param {Snapshot} snapshot */
function renderPeople({ presence: { members }, state }) {
  people.show(members)
  const agents = members.filter(({ kind }) => kind === "agent")
  at("no-agent").hidden = state !== "live" || agents.length > 0
  at("who").dataset.state = state
  const diver = agents.find(({ data }) => Number.isInteger(data?.pid))
  at("diver").hidden = !diver
  if (diver) setText(at("kill-diver"), `kill -9 ${diver.data?.pid}`)
}

/** @param {Snapshot} snapshot */
function renderConnection({ state, error }) {
  const over = { auto: "", websocket: " over WebSocket", sse: " over SSE", poll: " over long poll" }[transport]
  const words = {
    connecting: "connecting…",
    live: `live${over}`,
    reconnecting: "disconnected, trying again…",
    suspended: "suspended",
    closed: error ? `closed: ${error.message}` : "closed",
  }
  at("connection").dataset.state = state
  setText(at("connection-text"), words[state])
  if (state === known.state) return
  if (state === "reconnecting" && known.state === "live") journal.record("connection lost, trying again…")
  if (state === "live") void renderInfo()
  known.state = state
}

/** Show the buttons for running answers. @param {Snapshot} snapshot */
function renderRunning(snapshot) {
  const running = runningIn(snapshot)
  for (const id of known.stopping) if (!running.includes(id)) known.stopping.delete(id)
  const cancelled = new Set(snapshot.commands.filter(({ name }) => name === "cancel").map(({ target }) => target))
  const isStopping = running.length > 0 && running.every((id) => cancelled.has(id) || known.stopping.has(id))
  at("stop").hidden = running.length === 0
  at("stop").disabled = isStopping
  setText(at("stop"), isStopping ? "Stopping…" : "Stop")
  at("steer").hidden = answersIn(snapshot.messages).length === 0
  at("crash").disabled = snapshot.state !== "live"
  document.title = running.length ? "● answering – Holdfast demo" : "Holdfast demo"
}

function renderCounters() {
  const { events, bytes, reconnects } = channel.stats
  setText(at("count-reloads"), grouped(reloads))
  setText(at("count-reconnects"), grouped(reconnects))
  setText(at("count-events"), grouped(events))
  setText(at("count-bytes"), sized(bytes))
  setText(at("summary-counters"), `${counted(reloads, "reload")} · ${counted(events, "event")} · ${sized(bytes)}`)
}

/** Show the command that kills the server (it changes with every restart) and the model behind the guide. */
async function renderInfo() {
  try {
    const { pid, kill, model } = await (await fetch("/demo/info")).json()
    setText(at("kill"), kill)
    at("copy-kill").disabled = false
    at("about-guide").hidden = model !== null
    at("about-model").hidden = model === null
    setText(at("model"), model ?? "")
    if (known.pid && known.pid !== pid) journal.record(`the server is a new process: ${pid}`)
    known.pid = pid
  } catch {
    // The server is down again: the next `live` state repeats this request.
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
  if (sentence) journal.record(sentence)
}

/** @param {readonly Message[]} messages */
function noticeEnds(messages) {
  for (const message of messages) {
    const { id, status } = message
    if (status === "streaming") {
      if (!known.streaming.has(id)) journal.announce("answering…")
      known.streaming.add(id)
    } else if (known.streaming.delete(id)) {
      journal.record(`answer ${status}: ${counted(countPoints(textOf(message)), "character")}`)
      void prove(message)
    }
  }
}

/** @param {readonly Message[]} messages */
function noticeBreaks(messages) {
  for (const { id, meta } of messages) {
    const breaks = Array.isArray(meta?.continued) ? meta.continued : []
    const before = known.breaks.get(id)
    if (breaks.length && before !== undefined && breaks.length > before) journal.record(breakOf(breaks.at(-1)))
    known.breaks.set(id, breaks.length)
  }
}

/** @param {readonly Command[]} commands the pending ones */
function noticeCommands(commands) {
  for (const command of commands) {
    if (known.commands.has(command.id)) continue
    known.commands.set(command.id, command)
    if (known.commands.size > KNOWN_COMMANDS) known.commands.delete(known.commands.keys().next().value ?? "")
    const sentence = pendingOf(command, naming)
    if (sentence) journal.record(sentence)
  }
}

/** Handle the events that no snapshot keeps: signals and replies. @param {import("../view.js").WireEvent} event */
function handle(event) {
  if (event.type === "command.reply") {
    const command = known.commands.get(event.id)
    const sentence = command && outcomeOf(command, event, naming)
    if (sentence) journal.record(sentence)
  } else if (event.type === "signal" && event.name === "typing" && event.from && event.from !== me.id) {
    if (event.data) typing.add(event.from, naming(event.from))
    else typing.end(event.from)
  } else if (event.type === "signal" && event.name === "nobody_listening") {
    journal.record("no agent is listening: the message waits for one")
  }
}

/** Compare the shown text with the stored text, and show the result under the message. @param {Message} message */
async function prove({ id, version }) {
  try {
    const path = `/holdfast/v1/channels/${encodeURIComponent(channelName)}/messages/${encodeURIComponent(id)}`
    const { message } = await (await fetch(path)).json()
    const shown = channel.getSnapshot().messages.find((candidate) => candidate.id === id)
    if (message.version !== version || shown?.version !== version) return // it has changed since: a later comparison covers it
    const isEqual = textOf(message) === transcript.textOf(id)
    const size = counted(countPoints(textOf(message)), "character")
    transcript.prove(id, isEqual ? `the shown text equals the stored text: ${size}` : "the shown text differs from the stored text", isEqual)
  } catch {
    // The server is down: there is no stored text to compare with.
  }
}

// Doing -------------------------------------------------------------------------------------------------------------

/** @param {string} text */
function ask(text) {
  if (!text.trim()) return
  unsent.add(text)
  transcript.follow()
}

/** Store a question. @param {{ id: string, text: string }} question */
async function store({ id, text }) {
  return channel.create({ id, text, meta: { name: me.name } })
}

/** Kill the process of the agent that answers now. */
async function crash() {
  try {
    const body = JSON.stringify({ channel: channelName })
    const response = await fetch("/demo/crash", { method: "POST", headers: { "Content-Type": "application/json" }, body })
    const { pid, agent, detail } = await response.json()
    journal.record(response.ok ? `${agent} was killed, process ${pid}` : detail)
  } catch {
    journal.record("the agent was not killed: the server does not respond")
  }
}

/** Stop all running answers, for all viewers. */
async function stopAnswers() {
  const targets = runningIn(channel.getSnapshot()).filter((id) => !known.stopping.has(id))
  for (const id of targets) known.stopping.add(id)
  render()
  await Promise.all(targets.map((target) => channel.command("cancel", { target }))).catch((error) => {
    for (const id of targets) known.stopping.delete(id)
    journal.record(`the answer was not stopped: ${error.message}`)
    render()
  })
}

/** Send the text to the running answer, instead of a new question. */
async function steer() {
  const text = at("question").value.trim()
  const target = answersIn(channel.getSnapshot().messages).at(-1)?.id
  at("question").focus()
  if (!text || !target) return journal.announce("type the text for the answer first, then press Steer")
  clearQuestion()
  await channel.command("steer", { target, data: { text, name: me.name } }).catch((error) => {
    if (!at("question").value) at("question").value = text
    journal.record(`the text did not reach the answer: ${error.message}`)
  })
}

/** @param {Command} command @param {boolean} ok */
function reply({ id }, ok) {
  const failed = (/** @type {any} */ error) => {
    if (error.code !== "already_answered") journal.record(`the reply was not stored: ${error.message}`)
  }
  return channel.reply(id, { ok, data: { name: me.name } }).catch(failed)
}

function noticeTyping() {
  const isEmpty = !at("question").value.trim()
  if (isEmpty && known.typedAt) channel.signal("typing")
  else if (!isEmpty && Date.now() - known.typedAt > TYPING_AGAIN_MS) channel.signal("typing", true)
  else return
  known.typedAt = isEmpty ? 0 : Date.now()
}

function clearQuestion() {
  at("question").value = ""
  noticeTyping()
}

/** @param {KeyboardEvent} event */
function sendOnEnter(event) {
  // Enter also selects a word in an input method; Safari reports that key only by its old key code.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return
  event.preventDefault()
  at("composer").requestSubmit()
}

/** @param {HTMLElement} line */
async function copy(line) {
  try {
    await navigator.clipboard.writeText(line.textContent ?? "")
    journal.announce("copied")
  } catch {
    getSelection()?.selectAllChildren(line)
    journal.announce("the line is selected: copy it with the keyboard")
  }
}

/** Become present, also after every reconnect. */
function enter() {
  channel.enter({ name: me.name }).catch((error) => journal.record(`others do not see you: ${error.message}`))
}

// Helpers -----------------------------------------------------------------------------------------------------------

/** @param {Message} message */
function textOf({ parts = [] }) {
  return parts.map(({ type, text }) => (type === "text" ? text : "")).join("")
}

/** @param {readonly Message[]} messages */
function answersIn(messages) {
  return messages.filter(({ status }) => status === "streaming")
}

/** Return the ids that can be stopped: streaming answers, and messages whose answer has not begun. @param {Snapshot} snapshot */
function runningIn({ messages, presence }) {
  const answered = new Set(messages.map(({ reply_to }) => reply_to))
  const agents = presence.members.filter(({ kind, data }) => kind === "agent" && data?.state !== "listening")
  const workedOn = new Set(agents.map(({ data }) => data?.message))
  const waiting = messages.filter(({ id }) => workedOn.has(id) && !answered.has(id))
  return [...answersIn(messages), ...waiting].map(({ id }) => id)
}

/** @param {string} id @param {string} name */
function remember(id, name) {
  if (known.names.get(id) !== name) known.names.set(id, name)
}

/** @param {string} id of a client */
function naming(id) {
  return id === me.id ? me.name : (known.names.get(id) ?? nameOf({ id }))
}

/** Count this load if it is a reload, and return the number of reloads of this window. */
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

/** Return this page's address with changed parameters. @param {Record<string, string>} changes */
function address(changes) {
  const wanted = new URLSearchParams({ ...Object.fromEntries(parameters), ...changes })
  const query = wanted.toString().replaceAll("%3A", ":")
  return query ? `/?${query}` : "/"
}

// Wiring ------------------------------------------------------------------------------------------------------------

at("composer").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
  event.preventDefault()
  ask(at("question").value)
  clearQuestion()
  at("question").focus()
})
at("question").addEventListener("keydown", sendOnEnter)
at("question").addEventListener("input", noticeTyping)
at("stop").addEventListener("click", stopAnswers)
at("steer").addEventListener("click", steer)
at("crash").addEventListener("click", () => void crash())
at("newest").addEventListener("click", () => transcript.follow())
at("earlier").addEventListener("click", () => channel.history().catch((error) => journal.record(error.message)))
at("copy-kill").addEventListener("click", () => copy(at("kill")))
at("copy-kill-diver").addEventListener("click", () => copy(at("kill-diver")))
for (const suggestion of at("suggestions").children) {
  suggestion.addEventListener("click", () => ask(suggestion.textContent))
}
at("name").value = me.name
at("name").addEventListener("change", () => {
  me = rename(me, at("name").value, sessionStorage)
  at("name").value = me.name
  enter()
  render()
})

const other = drawName()
at("new-chat").href = address({ channel: `demo:${crypto.randomUUID().slice(0, 8)}` })
at("second-window").href = address({ as: other })
at("second-name").textContent = other
at("over-sse").href = address({ as: other, transport: "sse" })
at("over-ws").href = address({ as: other, transport: "ws" })

// On wide screens the panel is beside the conversation; on others it is folded above it.
const isWide = matchMedia("(min-width: 60rem)")
const fold = () => (at("panel").open = isWide.matches)
isWide.addEventListener("change", fold)
fold()
if (matchMedia("(pointer: fine)").matches) at("question").focus()

channel.listen(handle)
channel.subscribe(render)
enter()
unsent.start()
render()
