/** The demo page: one question to a plain stream and to Tenuto, and buttons that break both. Query parameters: `channel`; `as`, a name; `transport`, as the option of `connect`. @module */
import "../chat.js"
import { connect } from "../client.js"
import { at, counted, fill, make, post, say, size } from "./dom.js"
import { markup } from "./markup.js"
import { freeName, invitations, whoAmI } from "./people.js"
import { PlainStream } from "./plain.js"
import { marksOf, Trials } from "./trials.js"

const TRIALS = [
  { id: "reload", title: "Reload the page", hint: "the answer comes back" },
  { id: "window", title: "Second window", hint: "the same text, word for word" },
  { id: "kill", title: "Kill the server", hint: "kill -9, and start again" },
  { id: "crash", title: "Crash the agent", hint: "another one goes on" },
  { id: "offline", title: "Go offline", hint: "for ten seconds" },
]
/** @type {Record<string, string>} */
const ANSWERS = { streaming: "answering…", complete: "complete", interrupted: "waits for an agent…", cancelled: "stopped", failed: "failed" }
const STATES = { connecting: "connecting…", reconnecting: "reconnecting…", suspended: "offline", closed: "disconnected" }
const cutOff = (/** @type {string} */ why) => (/** @type {string} */ shown) => (shown ? `Cut off after ${shown}: the ${why}.` : `The ${why} before the first word.`)
/** What each break leaves of the plain stream, by its cause. @type {Record<import("./plain.js").Cause, (shown: string) => string>} */
const LOSSES = {
  reload: (shown) => (shown ? `${shown} lost on your reload.` : "The answer was lost on your reload, before its first word."),
  left: (shown) => `${shown || "The answer was"} lost when you left the page.`,
  server: cutOff("server died"),
  agent: cutOff("agent died"),
  offline: cutOff("network was gone"),
  full: () => "No connection was left: the plain streams of other tabs have them.",
  window: () => "This window was never sent the stream.",
}

const parameters = new URLSearchParams(location.search)
const secret = new URLSearchParams(location.hash.slice(1)).get("join")
if (secret) history.replaceState(null, "", location.pathname + location.search) // remove the secret from the address
const refusal = secret ? await post("/demo/join", { secret }).then(() => "", (error) => error.message) : ""
/** @typedef {{ pid: number, model: string | null, questions: string[], lan: boolean, person: { id: string, name: string } | null }} Server */
let server = /** @type {Server} */ (/** @type {unknown} */ (null))
const info = async () => (server = await fetch("/demo/info").then((response) => response.json()).catch(() => server)) // after a failure, the next connection requests it again
while (!(await info())) await new Promise((resolve) => setTimeout(resolve, 500))

const me = server.person ?? whoAmI(parameters.get("as"), sessionStorage)
const client = connect({ url: "/tenuto", transport: /** @type {any} */ (parameters.get("transport") ?? "auto"), client: server.person ? undefined : me.id })
const name = parameters.get("channel") ?? `demo:${client.newId()}`
const isReload = performance.getEntriesByType("navigation").some((one) => /** @type {any} */ (one).type === "reload")
const address = (/** @type {Record<string, string>} */ changes) => `/?${new URLSearchParams({ ...Object.fromEntries(parameters), ...changes })}`.replaceAll("%3A", ":")

/** Build the page for a person whom the server lets in. */
function start() {
  history.replaceState(null, "", address({ channel: name }))
  const chat = make("tenuto-chat", { client, strings: { placeholder: "Ask here, too" } })
  chat.setAttribute("channel", name)
  chat.setAttribute("heading", "The chat")
  at("chat").append(chat)
  const channel = /** @type {import("../client.js").Channel<Record<string, any>>} */ (client.channel(name))
  const plain = new PlainStream(sessionStorage, draw)
  const trials = new Trials({ client, storage: sessionStorage, isReload, info, draw }, channel)
  let [people, shownMarks, isDrawing] = [1, "", false]

  /** Return the names of the people in this chat, this person first. */
  function names() {
    const { presence, you } = channel.getSnapshot()
    return [me.name, ...presence.members.filter(({ id, kind }) => kind === "user" && id !== you?.id).map(({ id, data }) => String(data?.name ?? id))]
  }
  const another = () => address({ channel: name, ...(!server.person && { as: freeName(names()) }) })
  const renewInvite = invitations(server.lan, () => name, () => new URL(another(), location.href).href)

  /** Start the plain stream of the newest question of this window, unless one runs. */
  function notice() {
    const { question } = trials
    const isMine = question && question.author === channel.getSnapshot().you?.id
    if (isMine && question.id !== plain.kept.question && plain.state !== "streaming" && !trials.answer?.text) void plain.start(name, question)
    else if (question && plain.state === "idle" && !isMine) Object.assign(plain, { state: "broken", cause: "window" })
    draw()
  }

  /** Draw once a frame; a hidden page has no frames. */
  function draw() {
    if (isDrawing) return
    isDrawing = true
    const now = () => {
      if (!isDrawing) return
      isDrawing = false
      drawPlain()
      drawTenuto()
      for (const { id, hint } of TRIALS) {
        const { isOk = false, words = "" } = trials.kept.results[id] ?? {}
        const button = at(`do-${id}`)
        button.dataset.state = words ? (isOk ? "ok" : "lost") : trials.notes[id] ? "busy" : "open"
        button.disabled = !trials.question
        say(button.lastChild, trials.notes[id] || words || hint)
      }
    }
    requestAnimationFrame(now)
    setTimeout(now, 250)
  }

  function drawPlain() {
    const { state, cause, text, kept } = plain
    const asked = kept.asked || (cause === "window" ? (trials.question?.text ?? "") : "")
    const answer = cause === "window" ? trials.answer : trials.answerTo(kept.question)
    const [shown, before] = kept.isGone ? [kept.shown, kept.shown] : [size(text), 0] // `before`: lost by the break itself
    const lost = state === "broken" ? Math.max(before, size(answer?.text ?? "") - size(text)) : 0
    at("plain").dataset.state = state
    say(at("plain-state"), { idle: "", streaming: text ? "answering…" : "waiting…", complete: "complete", broken: text ? "cut off" : "gone" }[state])
    fill(at("plain-text"), `${text}\n${state}\n${asked}\n${cause}`, () => {
      const loss = cause && make("div", { className: "loss" }, make("strong", {}, LOSSES[cause](shown ? counted(shown) : "")), make("span", { id: "later" }), cause === "window" ? "It belongs to the page that asked." : " Asking again would pay the model a second time. ")
      if (loss && asked && cause !== "window") loss.append(make("button", { id: "again", className: "link", onclick: () => plain.start(name, { id: kept.question, text: asked }, true) }, "Ask again"))
      const log = [asked && make("p", { className: "asked" }, asked), make("div", { className: "answer" }, ...markup(text)), loss]
      return log.filter(Boolean)
    })
    if (cause && cause !== "window") say(at("later"), lost > before ? `${counted(lost - before, "more character")} came, to no one here.` : "The rest comes to no one here.")
    at("plain-log").scrollTop = at("plain-log").scrollHeight
    drawCounts("plain", kept.breaks, lost, kept.calls)
  }

  function drawTenuto() {
    const { state, streaming, messages } = channel.getSnapshot()
    const shownState = client.state === "suspended" ? "suspended" : state
    const marks = marksOf(/** @type {any} */ (messages), trials.kept.marks)
    const here = names()
    at("tenuto").dataset.state = shownState
    say(at("connection"), shownState !== "live" ? STATES[shownState] : trials.answer ? ANSWERS[trials.answer.status] : trials.question ? "thinking…" : "")
    fill(at("people"), here.join(), () => (here.length > 1 ? here.slice(0, 4).map((one) => make("li", { title: one }, [...one][0].toUpperCase())) : []))
    if (here.length > people) void renewInvite() // perhaps by this invitation: show another one
    if (JSON.stringify(marks) !== shownMarks) chat.marks = marks
    ;[shownMarks, people] = [JSON.stringify(marks), here.length]
    document.body.classList.toggle("fresh", !parameters.has("channel") && !trials.question)
    document.title = `${streaming.length ? "● answering – " : ""}Tenuto demo`
    drawCounts("tenuto", trials.kept.breaks, trials.kept.lost, trials.calls)
  }

  /** @param {string} pane @param {number} breaks @param {number} lost @param {number} calls */
  function drawCounts(pane, breaks, lost, calls) {
    /** @type {[number, string, string?][]} */
    const counts = [[breaks, "break"], [lost, "character lost", "characters lost"], [calls, "model call"]]
    fill(at(`${pane}-counts`), String(counts), () => counts.map(([n, one, more]) => make("span", { className: more ? "lost" : "" }, make("b", {}, n.toLocaleString("en")), counted(n, one, more).replace(/^\S+/, ""))))
    at(`${pane}-counts`).classList.toggle("bad", lost > 0)
  }

  const actions = { reload: () => location.reload(), window: () => window.open(another(), "_blank", "noopener"), kill: trials.kill, crash: trials.crash, offline: () => (trials.offline(), plain.cut()) }
  at("trials").append(...TRIALS.map(({ id, title }) => make("button", { id: `do-${id}`, onclick: /** @type {any} */ (actions)[id] }, make("b", {}, title), make("span"))))
  at("questions").append(...server.questions.map((value) => make("option", { value })))
  at("text").value = server.questions[0]
  at("asking").disabled = false
  at("ask").onsubmit = (/** @type {Event} */ event) => {
    event.preventDefault()
    const text = at("text").value.trim()
    if (text) channel.send({ text, meta: { author_name: me.name } }).catch(() => {}) // the element shows a refusal
  }
  say(at("who-answers"), server.model ? `${server.model} answers: one call feeds both panes.` : "No model: nine written answers, at the pace of one. One call feeds both panes.")
  addEventListener("pagehide", () => plain.save())
  if (plain.kept.channel === name) plain.return(isReload)
  channel.subscribe(notice)
  channel.enter({ name: me.name }).catch(() => {}) // the element says why
  draw()
}

if (server.lan && !server.person) say(at("refused"), refusal || "This chat needs an invitation. Its owner finds one under “Invite”.")
else start()
