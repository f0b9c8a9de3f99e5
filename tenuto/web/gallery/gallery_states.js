/**
 * The states that the gallery shows. Each has messages and events as the server sends them, and the actions of a person.
 *
 * The types are those of the wire, so that a change of them fails the type check here.
 * @module
 */

/** @typedef {import("../view.js").Message} Message */
/** @typedef {import("../view.js").Part} Part */
/** @typedef {import("../view.js").Command} Command */
/** @typedef {import("../view.js").Member} Member */
/** @typedef {import("../view.js").WireEvent} WireEvent */
/** @typedef {import("../view.js").Attached} Attached */
/**
 * How the server behaves: `silent` never responds, `lost` breaks off after the first batch, `unauthenticated` and
 * `forbidden` refuse, and `foreign` is another program.
 * @typedef {"live" | "silent" | "lost" | "unauthenticated" | "forbidden" | "foreign"} Server
 */
/**
 * @typedef {object} State
 * @property {string} title
 * @property {string} shows words of the element in this state
 * @property {readonly Message[]} [messages] of the first batch
 * @property {Partial<Attached>} [attached] further fields of its first event
 * @property {readonly WireEvent[]} [events] after it
 * @property {Server} [server] `live` by default
 * @property {boolean} [isCached] the messages are those of an earlier page
 * @property {boolean} [isOffline] the browser has no network
 * @property {readonly string[]} [chats] titles of the visitor's earlier chats: the element has no `channel`
 * @property {number} [wait_s] seconds before which the server accepts no question
 * @property {readonly string[]} [can] the person's capabilities
 * @property {Record<string, string>} [attributes] of the element
 * @property {{ message: string, at: number, text: string }[]} [marks]
 * @property {(here: import("./gallery.js").Scene) => unknown} [act] the actions of a person in this state
 */

const NOON_MS = 1_795_262_400_000
const ME = "Ada"
const CURSOR = `## A cursor says what you have already seen

Every batch of events ends with one. Send it back when you reconnect and you get exactly what you missed: **no repeats, no
holes**. It works across SSE, WebSocket and long poll.

\`\`\`python
async for event in hub.subscribe("chat:1", since=cursor):
    print(event)
\`\`\`

With \`EventSource\` you do not even need code: the browser sends \`Last-Event-ID\` by itself.`
const FORMATS = `### What each transport costs

| transport | requests | after a break |
|:--|--:|:--|
| WebSocket | 1 | resumes with its cursor |
| SSE | 1 a channel | resumes with \`Last-Event-ID\` |
| long poll | 1 an event | resumes with its cursor |

1. Choose **one** transport.
2. Keep the cursor:
   - in memory, or
   - in the browser's storage.

- [x] Reconnect after each close
- [ ] Guess what was missed

> A cursor is text. Do not take it apart.

Read [the protocol](https://tenuto.example/protocol) or [tenuto.example/docs](https://elsewhere.example/).

---

\`\`\`js
const channel = connect({ url: "/tenuto" }).channel("chat:1") // a long line stays on one line and scrolls inside of its block
\`\`\``

let serial = 0

/** @param {string} text @returns {Part} */
const text = (text) => ({ type: "text", text })

/** Return a message of a thread. Its id is its role and its place. @param {string} role @param {string} author @param {string | Part[]} content @param {Partial<Message>} [fields] @returns {Message} */
function message(role, author, content, fields) {
  serial++
  const parts = typeof content === "string" ? [text(content)] : content
  return { id: `m${serial}`, role, author, status: "complete", parts, created: serial, version: serial, created_at: NOON_MS, updated_at: NOON_MS, ...fields }
}

/** @param {string | Part[]} content @param {Partial<Message>} [fields] */
const question = (content, fields) => message("user", ME, content, fields)

/** @param {string | Part[]} content @param {Partial<Message>} [fields] */
const answer = (content, fields) => message("assistant", "Guide", content, fields)

/** Return the messages, each with the one before it as its parent unless it has another. @param {...Message} messages */
const thread = (...messages) => messages.map((one, index) => ({ parent: messages[index - 1]?.id ?? null, ...one }))

/** @param {number} count @param {string} [kind] @returns {Member[]} */
const members = (count, kind = "user") => NAMES.slice(0, count).map((id) => ({ id, kind, connections: 1 }))

/** @param {string} id of the message @param {Partial<Command>} [fields] @returns {WireEvent} */
const approval = (id, fields) => ({
  type: "command",
  serial: ++serial,
  command: {
    id: `approve-${id}`, name: "approve", target: id, from: "Guide", expires_at: NOON_MS + 300_000,
    data: { question: "Delete 3 files?", tool: "delete_files", arguments: { path: "drafts/2024/*" } }, ...fields,
  },
})

/** @param {string} id of the message @param {{ ok: boolean, from?: string, error?: unknown }} reply @returns {WireEvent} */
const replyTo = (id, reply) => ({ type: "command.reply", serial: ++serial, id: `approve-${id}`, ...reply })

/** @param {string} name @param {Record<string, unknown>} fields @returns {Part} */
const tool = (name, fields) => ({ type: "tool", call: `call-${name}`, name, ...fields })

const NAMES = [
  "Bea", "Chidi", "Dana", "Emre", "Fatima", "Gustav", "Hana", "Ivan", "Jun", "Kofi", "Lena", "Mateo", "Nour", "Olga", "Priya", "Quinn",
  "Rosa", "Sven", "Tala", "Uma", "Viktor", "Wen", "Ximena", "Yusuf", "Zoe", "Amir", "Birgit", "Carlos", "Dilan", "Elif", "Femi", "Greta",
  "Hugo", "Ines", "Jonas", "Kira", "Lucía", "Mei", "Nils", "Oksana",
]

const answered = thread(question("What is a cursor, and how do I resume with it?"), answer(CURSOR))
const formats = thread(question("Which transport should I use?"), answer([
  { type: "reasoning", text: "The person asks about transports. A table is short." }, text(FORMATS),
  { type: "source", title: "Protocol §2.2", url: "https://tenuto.example/protocol" }, { type: "source", title: "Watching, in Python", url: "https://tenuto.example/python" },
  { type: "file", filename: "transports.pdf", url: "https://tenuto.example/files/1", media_type: "application/pdf" },
  { type: "data", name: "search", data: { query: "transports", found: 2 } },
]))
const thinking = thread(question("What survives a crash?"), answer([], { status: "streaming" }))
const streaming = thread(question("What is a cursor, and how do I resume with it?"), answer(CURSOR.slice(0, -22), { status: "streaming" }))
const steered = thread(question("Explain leases."), answer("A lease is the right to write until a time. Each write renews", { status: "streaming" }))
const queued = thread(question("Explain leases."), answer("A lease is the right to write until a time. Each write renews", { status: "streaming" }), question("And what is a generation?"))
const searching = thread(question("How many drafts are older than a year?"), answer([
  text("I look into the folder."), tool("list_files", { input: '{"path": "drafts/2024"}', state: "called" }),
], { status: "streaming" }))
const searched = thread(question("How many drafts are older than a year?"), answer([
  tool("list_files", { input: '{"path": "drafts/2024"}', state: "done", output: ["plan.md", "old.md", "notes.md"] }),
  tool("read_file", { input: '{"path": "drafts/2024/plan.md"}', state: "error", output: "permission denied" }),
  text("There are **3 drafts**. I could not read one of them."),
]))
const asking = thread(question("Remove the old drafts"), answer("I found **3 drafts** older than a year. I need your permission to delete them.", { status: "streaming" }))
const asked = thread(question("Remove the old drafts"), answer("I found **3 drafts** older than a year. They are deleted now."))
const expired = thread(question("Remove the old drafts"), answer("I found **3 drafts** older than a year. I waited for your permission and stopped."))
const stopped = thread(question("Count to a thousand"), answer("one, two, three, four, five", { status: "cancelled" }))
const interrupted = thread(question("What survives a crash?"), answer("The log survives, and with it each piece of text that", { status: "interrupted", reason: "writer_gone" }))
const takenOver = thread(question("What survives a crash?"), answer("The log survives, and with it each piece of text that was stored.\n\nAnother agent reads the log and goes on where the first one", { status: "streaming" }))
const superseded = thread(question("What survives a crash?"), answer([
  { type: "attempt", characters: 67, parts: [{ type: "reasoning", text: "A list may help." }, text("The log survives, and with it each piece of text that was stored, s")] },
  text("Everything that was stored survives: **the log**, and with it each piece of text."),
]))
const logged = "The log survives, and with it each piece of text that was stored."
const continued = thread(question("What survives a crash?"), answer([{ ...text(`${logged}\n\nAnother agent reads the log and goes on where the first one stopped.`), joins: [logged.length] }]))
const failed = thread(question("Summarise the report"), answer("The report has", { status: "failed", reason: "model_error" }))
const unheard = thread(question("Is an agent there?"))
const unsent = thread(question("What is a cursor?"), answer("A cursor says what you have already seen."))
const first = question("What is an epoch?")
const versions = thread(
  first, answer("One life of a log."), question("What is an epoch, in one sentence?", { parent: null }),
  answer("One life of a log; it changes when history was lost."), question("What is an epoch, in French?", { parent: null }), answer("Une vie d’un journal."),
)
const news = thread(message("user", "Bea", "One more question", { parent: answered[1].id }), answer("One more answer."))
const many = Array.from({ length: 30 }, (_, index) => (index % 2 ? answer(`Answer ${(index + 1) / 2}: the log keeps it.`) : question(`Question ${index / 2 + 1}`)))
const mirrored = thread(
  question("ما هو المؤشر؟"), answer("المؤشر يقول ما رأيته من قبل. أرسله مع `Last-Event-ID` فتحصل على **ما فاتك** فقط.\n\n- بلا تكرار\n- بلا ثغرات\n\nThis paragraph is in English.\n\n```python\nawait hub.close()\n```"),
  question("And in English?"), answer("תשובה בעברית עם `code` באמצע המשפט.", { status: "streaming" }),
)

/** @type {Record<string, State>} */
const states = {
  empty: { title: "Empty", shows: "Ask something." },
  connecting: { title: "Connecting", shows: "Connecting…", server: "silent" },
  "from-cache": { title: "From cache", shows: "Your last view", server: "silent", isCached: true, messages: answered },
  live: { title: "Live", shows: "A cursor says", messages: answered },
  formats: { title: "Every format", shows: "What each transport costs", messages: formats },
  offline: { title: "Offline, with waiting messages", shows: "Sending…", server: "lost", isOffline: true, messages: unsent, act: (here) => here.send("Will this be sent?", "And this one too?") },
  reconnecting: { title: "Reconnecting", shows: "Reconnecting…", server: "lost", messages: answered },
  "caught-up": {
    title: "Caught up, with marks", shows: "You reloaded here", messages: answered,
    marks: [
      { message: answered[1].id, at: 210, text: "You reloaded here. **1,292 characters** came back in **1 event, 38 ms**" },
      { message: answered[1].id, at: 330, text: "Server restarted here. **Nothing was lost.**" },
    ],
  },
  "refused-401": { title: "Refused: no identity", shows: "You are signed out.", server: "unauthenticated" },
  "refused-403": { title: "Refused: not allowed", shows: "You have no access to this chat.", server: "forbidden" },
  "wrong-server": { title: "Refused: another server", shows: "This chat does not work here.", server: "foreign" },
  "read-only": { title: "Read-only", shows: "This chat is read-only.", messages: answered, can: ["subscribe", "history"] },
  thinking: { title: "Thinking", shows: "thinking…", messages: thinking },
  streaming: { title: "Streaming", shows: "answering…", messages: streaming },
  steering: { title: "Steering", shows: "Steer this answer", messages: steered, act: async (here) => (await here.click("Steer this answer"), here.type("In French, please")) },
  waiting: { title: "A question that waits", shows: "And what is a generation?", messages: queued },
  "earlier-attempt": { title: "Earlier attempt", shows: "Earlier attempt", messages: superseded, act: (here) => here.unfold() },
  continued: { title: "Continued after a break", shows: "went on here", messages: continued },
  "tool-running": { title: "Tool running", shows: "list_files", messages: searching },
  "tool-failed": { title: "Tool failed", shows: "read_file", messages: searched, act: (here) => here.unfold() },
  approval: { title: "Approval", shows: "Delete 3 files?", messages: asking, events: [approval(asking[1].id)] },
  "approval-answered": { title: "Approval, answered", shows: "Answered by", messages: asked, events: [approval(asked[1].id)], act: (here) => here.later(".approval", replyTo(asked[1].id, { ok: true, from: "Bea" })) },
  "approval-expired": { title: "Approval, expired", shows: "Expired", messages: expired, events: [approval(expired[1].id)], act: (here) => here.later(".approval", replyTo(expired[1].id, { ok: false, error: { code: "expired" } })) },
  stopped: { title: "Stopped", shows: "Stopped", messages: stopped },
  interrupted: { title: "Interrupted", shows: "Interrupted", messages: interrupted },
  "taken-over": {
    title: "Taken over by another agent", shows: "Another agent", messages: takenOver,
    marks: [{ message: takenOver[1].id, at: 66, text: "Another agent took over here. **Nothing was lost.**" }],
  },
  failed: { title: "Failed", shows: "Failed", messages: failed },
  "not-sent": { title: "Not sent", shows: "Not sent", messages: unsent, act: (here) => here.refuse("A message that is too long") },
  "no-agent": { title: "No assistant connected", shows: "No assistant is connected", messages: unheard, act: (here) => here.later("article", { type: "signal", name: "nobody_listening", data: { message: unheard[0].id } }) },
  visitor: { title: "A visitor with earlier chats", shows: "A cursor says", messages: answered, chats: ["How do I resume, and what does it cost on a phone?", "Which transport?"] },
  "ask-again": { title: "Too many questions", shows: "You can ask again in", messages: unsent, wait_s: 3_000, act: (here) => here.ask("And what is an epoch?") },
  "history-loading": { title: "Older messages load", shows: "Loading…", messages: thread(...many), attached: { more: true, before: many[0].created }, act: (here) => here.scrollUp() },
  people: {
    title: "40 people", shows: "+37", messages: answered, attached: { presence: { members: members(40), count: 40 } },
    events: [{ type: "signal", name: "typing", data: { typing: true }, from: "Bea" }, { type: "signal", name: "typing", data: { typing: true }, from: "Chidi" }],
  },
  "right-to-left": { title: "Right to left", shows: "المؤشر", messages: mirrored, attributes: { dir: "rtl" } },
  german: { title: "German", shows: "Kopieren", messages: answered, attributes: { lang: "de" } },
  narrow: { title: "320 pixels", shows: "What each transport costs", messages: formats, attributes: { class: "narrow" } },
  large: { title: "200 % text", shows: "A cursor says", messages: streaming, attributes: { class: "large" } },
  dark: { title: "Dark", shows: "A cursor says", messages: answered, attributes: { theme: "dark" } },
  "forced-colours": { title: "Forced colours (a setting of the system)", shows: "Delete 3 files?", messages: asking, events: [approval(asking[1].id)] },
  floating: { title: "Floating, open", shows: "A cursor says", messages: streaming, attributes: { launcher: "", open: "" }, attached: { presence: { members: members(1), count: 1 } } },
  launcher: { title: "Launcher, closed, with a badge", shows: "2", messages: answered, attributes: { launcher: "", open: "" }, act: (here) => (here.hide(), here.create(...news)) },
  branches: { title: "Branch 2 of 3", shows: "in one sentence", messages: versions, act: (here) => here.select(versions[2].id) },
  "deleted-while-edited": { title: "Deleted while it is edited", shows: "Save", messages: unsent, act: async (here) => (await here.click("Edit"), here.remove(unsent[0].id)) },
  mistake: { title: "A mistake in an attribute", shows: "This chat does not work here.", attributes: { theme: "blue" } },
}

export const STATES = new Map(Object.entries(states))
