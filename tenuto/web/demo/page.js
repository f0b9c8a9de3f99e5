/** The demo page: chats, one conversation in `<tenuto-chat>`, and a scoreboard. Query parameters: `channel`; `as`, a name; `transport`, as the option of `connect`. @module */
import "../chat.js"
import { connect } from "../client.js"
import { buildBoard, drawBoard } from "./board.js"
import { drawChats, noteChat } from "./chats.js"
import { at, fill, make, post, say } from "./dom.js"
import { invitations } from "./invite.js"
import { PlainStream } from "./plain_stream.js"
import { marksOf, Score } from "./score.js"
import { watchTrials } from "./trials.js"
import { autoplay, freeName, whoAmI } from "./visitor.js"

const STATES = { connecting: "Connecting…", live: "Live", reconnecting: "Reconnecting…", suspended: "Offline", closed: "Disconnected" }
const parameters = new URLSearchParams(location.search)
const secret = new URLSearchParams(location.hash.slice(1)).get("join")
if (secret) history.replaceState(null, "", location.pathname + location.search) // remove the secret from the address
const refusal = secret ? await post("/demo/join", { secret }).then(() => "", (error) => error.message) : ""
let server = /** @type {any} */ (null)
const info = async () => (server = await fetch("/demo/info").then((response) => response.json()).catch(() => server)) // after a failure, the next connection requests it again
while (!(await info())) await new Promise((resolve) => setTimeout(resolve, 500))

let channel = /** @type {import("../client.js").Channel} */ (/** @type {any} */ (null))
let [leave, shownMarks, people] = [() => {}, "", 1]
const me = server.person ?? whoAmI(parameters.get("as"), sessionStorage)
const client = connect({ url: "/tenuto", transport: /** @type {any} */ (parameters.get("transport") ?? "auto"), client: server.person ? undefined : me.id })
const isReload = performance.getEntriesByType("navigation").some((one) => /** @type {any} */ (one).type === "reload")
const score = new Score(sessionStorage)
const trials = watchTrials({ client, score, plain: new PlainStream(), isReload, info, draw: () => drawBoard(trials, server) })
const [chat, isNarrow] = [make("tenuto-chat", { strings: { placeholder: "Ask something…" } }), matchMedia("(max-width: 900px)")]

/** Return the names of the people in this chat, this person first. @returns {string[]} */
function names() {
  const { presence, you } = channel.getSnapshot()
  return [me.name, ...presence.members.filter(({ id, kind }) => kind === "user" && id !== you?.id).map(({ id, data }) => String(data?.name ?? id))]
}

function draw() {
  const snapshot = channel.getSnapshot()
  const { status, messages, streaming } = snapshot
  const state = client.state === "suspended" ? "suspended" : snapshot.state
  const here = names()
  const marks = marksOf(messages, score.kept.marks)
  say(at("connection-text"), STATES[state])
  Object.assign(at("connection"), { title: status.error?.message ?? "" }).dataset.state = state
  fill(at("people"), here.join(), () => [...here.slice(0, 4).map((name) => make("li", { title: name }, [...name][0].toUpperCase())), ...(here.length > 4 ? [`+${here.length - 4}`] : [])])
  if (here.length > people) void renewInvite() // a person has come, perhaps by this invitation, so show another one
  if (JSON.stringify(marks) !== shownMarks) chat.marks = marks
  ;[shownMarks, people] = [JSON.stringify(marks), here.length]
  at("welcome").hidden = state !== "live" || messages.length > 0
  document.title = `${streaming.length ? "● answering – " : ""}Tenuto demo`
  drawChats(noteChat(localStorage, channel.name, snapshot, here.slice(1)), channel.name, show)
  drawBoard(trials, server)
}

/** @param {string} name of a channel */
function show(name) {
  chat.setAttribute("channel", name)
  leave()
  channel = client.channel(name)
  history.replaceState(null, "", address({ channel: name }))
  const ends = [trials.open(channel), channel.subscribe(draw), () => channel.close()]
  leave = () => ends.forEach((end) => end())
  channel.enter({ name: me.name }).catch(() => {}) // the element says why the channel is closed
  if (at("chats").popover) at("chats").hidePopover()
  draw()
}

/** On a narrow page the chats are a drawer and the scoreboard is a sheet. */
const fit = () => ["chats", "score"].forEach((id) => (at(id).popover = isNarrow.matches ? "auto" : null))
const newChat = () => show(`demo:${client.newId()}`)
const ask = (/** @type {string} */ text) => (channel.send({ text, meta: { author_name: me.name } }).catch(() => {}), true) // the element shows a refusal
const address = (/** @type {Record<string, string>} */ changes) => `/?${new URLSearchParams({ ...Object.fromEntries(parameters), ...changes })}`.replaceAll("%3A", ":")
const another = () => address({ channel: channel.name, ...(!server.person && { as: freeName(names()) }) })
const renewInvite = invitations(server.lan, () => channel.name, () => new URL(another(), location.href).href)

/** Build the page for a person whom the server lets in. */
function start() {
  fit()
  Object.assign(chat, { client }).append(at("welcome"), at("footer"))
  at("main").append(chat)
  buildBoard({ ...trials, reload: () => location.reload(), join: () => window.open(another(), "_blank", "noopener") })
  at("suggestions").append(...server.questions.map((/** @type {string} */ text) => make("button", { className: "button", onclick: () => ask(text) }, text)))
  say(at("who-answers"), server.model ? `${server.model} answers.` : "The guide quotes this project’s docs; it is not a model.")
  at("use-model").hidden = Boolean(server.model)
  parameters.has("channel") ? show(parameters.get("channel") ?? "") : newChat()
  at("new-chat").onclick = newChat
  isNarrow.addEventListener("change", fit)
  autoplay(() => !at("welcome").hidden && ask(server.questions[0]), (isPointing) => ["do-reload", "show-score"].forEach((id) => at(id).classList.toggle("pulse", isPointing)))
}

if (server.lan && !server.person) say(at("refused"), refusal || "This chat needs an invitation. Its owner finds one under “Invite”.")
else start()
