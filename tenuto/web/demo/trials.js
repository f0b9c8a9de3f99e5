/** The five trials: what the page had before each of them is compared with what it has afterwards. @module */
import { counted, post, size } from "./dom.js"
import { breaksOf } from "./score.js"

/** @typedef {import("./score.js").Answer} Answer */
/** @typedef {{ starts: number, kill: string, downSeconds: number | null }} Server */
/** @typedef {{ client: import("../client.js").Client, score: import("./score.js").Score, plain: import("./plain_stream.js").PlainStream, isReload: boolean, info: () => Promise<Server>, draw: () => void }} Page */

const [OFFLINE_MS, TEXT, WINDOW] = [10_000, "demo-text", Math.random().toString(36)]
const LONGEST = 800 // code points of a text that windows compare: the data of a signal has at most 4 KiB
const since = (/** @type {number} */ ms) => (performance.now() - ms) / 1_000

/** Watch the conversation for the five trials, also if another window or a terminal causes them. @param {Page} page */
export function watchTrials({ client, score, plain, isReload, info, draw }) {
  const notes = /** @type {Record<string, string>} what a box says now, instead of its hint */ ({})
  const theirs = new Map() // texts of joined windows, until as much is shown here
  let seen = new Map() // for each answer its text as it was shown last
  let channel = /** @type {import("../client.js").Channel} */ (/** @type {any} */ (null))
  let gone = /** @type {{ answer: Answer | null, ms: number, how: string } | null} what was shown when the connection or the page ended */ (null)
  let { before } = score.kept
  let [wasLive, isReported, crashed, crash_ms, offline_ms] = [false, isReload, "", 0, 0]
  if (isReload) score.keep({ reloads: score.kept.reloads + 1, plainLost: score.kept.plainLost || (before?.plain ?? 0) })
  addEventListener("pagehide", () => channel && score.keep({ before: { channel: channel.name, answer: newest(), plain: size(plain.text) } }))

  /** Follow a channel. @param {import("../client.js").Channel} next @returns {() => void} ends it */
  function open(next) {
    channel = next
    gone = isReload && before?.channel === channel.name ? { answer: before.answer, ms: performance.now(), how: "reload" } : null
    ;[before, wasLive, seen] = [null, false, new Map()]
    const ends = [channel.subscribe(notice), channel.listen(receive)]
    return () => ends.forEach((end) => end())
  }

  const find = (/** @type {string | undefined} */ id) => channel.getSnapshot().messages.find((one) => one.id === id)
  /** The newest answer that is shown. @returns {Answer | null} */
  function newest() {
    return channel.getSnapshot().messages.filter(({ role }) => role === "assistant").map(({ id, text, status }) => ({ message: id, text, status })).at(-1) ?? null
  }

  function notice() {
    const [isLive, hasReturned] = [channel.getSnapshot().state === "live", !wasLive]
    if (wasLive && !isLive) gone ??= { answer: newest(), ms: performance.now(), how: offline_ms ? "offline" : "lost" }
    if (isLive) noticeAnswers()
    wasLive = isLive
    if (isLive) compareWindows()
    if (isLive && hasReturned) void settleReturn()
  }

  /** Compare the answer with its state before a reload or a lost connection, at the first complete view after it. */
  async function settleReturn() {
    const [{ answer, ms: left_ms, how }, { all, lastCatchUp }] = [gone ?? { answer: null, ms: 0, how: "" }, channel.getSnapshot()]
    const { points = 0, events = 0, ms = since(left_ms) * 1_000 } = /** @type {Record<string, number>} */ (lastCatchUp ?? {})
    const others = how === "reload" ? all.filter(({ id, local }) => !local && id !== answer?.message) : [] // a reload fetches each in one event: the rest is the answer
    const [text, batch] = [counted(others.reduce((left, { text }) => left - size(text), points)), `${counted(Math.max(1, events - others.length), "event")}, ${Math.ceil(ms)} ms`]
    ;[gone, offline_ms] = [null, 0]
    if (how === "reload") settle("reload", answer, `${text} came back in ${batch}`, `You reloaded here. **${text}** came back in **${batch}**`)
    if (how === "offline") settle("offline", answer, `${text} followed in ${batch}, nothing lost`, `You were offline here. **${text}** followed in **${batch}**`)
    const [{ kill }, here, server] = [score.kept, channel, await info()]
    const down = `${(server.downSeconds ?? since(left_ms)).toFixed(1)} s`
    if (score.seeServer(server) && here === channel) settle("kill", answer, `${kill} · down ${down}, nothing lost`, `Server killed here. Back after **${down}, 0 characters lost**`)
    for (const id in notes) notes[id] = ""
    draw()
  }

  /** Compare an answer with its earlier state. If no text is lost, mark the place in a running answer. @param {string} id @param {Answer | null} answer @param {string} words @param {string} [mark] */
  function settle(id, answer, words, mark) {
    if (!answer?.text) return
    const { message, text, status } = answer
    const lost = score.settle(id, text, find(message)?.text ?? "", words)
    if (mark && !lost && status === "streaming") score.keep({ marks: [...score.kept.marks, { message, at: size(text), text: mark, isKill: id === "kill" }].slice(-50) })
  }

  function noticeAnswers() {
    const { messages, you } = channel.getSnapshot()
    for (const message of messages.filter(({ role }) => role === "assistant")) {
      const { id, text, status } = message
      const [before, breaks, question] = [seen.get(id), breaksOf(message), find(message.reply_to)]
      seen.set(id, { text, breaks: breaks.length })
      if (!before && wasLive && status === "streaming" && question?.author === you?.id) void plain.start(channel.name, id, draw)
      const isContinued = before && breaks.length > before.breaks && breaks.at(-1)?.isCrash
      // A model cannot continue in the middle of a sentence: its answer ends as interrupted, and another one follows.
      const isReplaced = before && crashed === id && status === "interrupted" && newest()?.message !== id
      if (!isContinued && !isReplaced) continue
      const words = `${isContinued ? breaks.at(-1)?.successor : "Another agent"} went on after ${counted(size(before.text))}`
      score.settle("crash", before.text, text, crashed === id ? `${words}, ${since(crash_ms).toFixed(1)} s later` : words)
      ;[crashed, notes.crash] = ["", ""]
    }
  }

  /** Send the other windows once the text that this one shows, and compare it with the texts that they have sent. */
  function compareWindows() {
    const answer = newest()
    if (!isReported && answer?.text) channel.signal(TEXT, { window: WINDOW, message: answer.message, text: [...answer.text].slice(0, LONGEST).join("") })
    isReported ||= Boolean(answer?.text)
    for (const [window, { from, message, text }] of theirs) {
      const mine = find(message)?.text ?? ""
      const member = channel.getSnapshot().presence.members.find(({ id }) => id === from)
      if (mine.length < text.length || !member) continue
      theirs.delete(window)
      score.settle("join", text, mine, `${from === client.id ? "Your other window" : (member.data?.name ?? from)} sees the same text, word for word`)
    }
  }

  /** @param {any} event of the wire */
  function receive({ type, name, from, data }) {
    if (type !== "signal" || name !== TEXT || typeof data?.text !== "string" || data.window === WINDOW) return
    theirs.set(data.window, { from, message: data.message, text: data.text })
    compareWindows()
    draw()
  }

  /** @param {string} id @param {string} words */
  async function request(id, words) {
    notes[id] = words
    draw()
    await post(`/demo/${id}`, { channel: channel.name }).catch((error) => ([crashed, notes[id]] = ["", error.message]))
    draw()
  }

  /** Disconnect for ten seconds; the plain stream loses its network too. */
  function offline() {
    if (offline_ms) return
    ;[offline_ms, notes.offline] = [performance.now(), "Offline for ten seconds. Keep typing."]
    client.suspend()
    plain.cut()
    setTimeout(() => client.resume(), OFFLINE_MS)
    draw()
  }

  return { open, notes, newest, score, plain, offline, kill: () => request("kill", "Killed. It restarts…"), crash: () => (([crashed, crash_ms] = [newest()?.message ?? "", performance.now()]), request("crash", "Crashed. Another takes over…")) }
}
