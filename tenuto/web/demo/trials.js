/** The five trials: what the right pane showed before each of them is compared with what it shows afterwards. @module */
import { counted, keep, post, recall, size } from "./dom.js"

/** @typedef {import("../client.js").Message<Record<string, any>>} Message */
/** @typedef {{ message: string, at: number, text: string, trial?: string }} Mark `at` counts code points of the message's text */
/** @typedef {{ question: string, answer: string, text: string, isOver: boolean, crashes: number, by?: unknown }} Seen a question, and its answer as it was shown: its id is empty before the answer begins */
/** @typedef {{ isOk: boolean, words: string }} Result */
/** @typedef {{ id: string, seen: Seen, words: string, mark: string, mustMove: boolean, isAnew?: boolean }} Trial one whose end is waited for */
/** @typedef {{ results: Record<string, Result>, marks: Mark[], question: string, breaks: number, lost: number, pid: number, left: (Seen & { channel: string }) | null }} Kept `left` is what the page showed when it ended */
/** @typedef {{ client: import("../client.js").Client, storage: Pick<Storage, "getItem" | "setItem">, isReload: boolean, info: () => Promise<{ pid: number }>, draw: () => void }} Page */

const OFFLINE_MS = 10_000
const [SIGNAL, WINDOW, LONGEST] = ["demo-text", Math.random().toString(36), 800] // code points that windows compare: a signal has at most 4 KiB
const seconds = (/** @type {number} */ since_ms) => `${((performance.now() - since_ms) / 1_000).toFixed(1)} s`

/** Return the number of characters of `before` that are missing from the beginning of `after`. @param {string} before @param {string} after */
export function lostOf(before, after) {
  let same = after.startsWith(before) ? before.length : 0
  while (same < before.length && before[same] === after[same]) same++
  return size(before.slice(same))
}

/** Return where an agent ended and another one continued. @param {{ meta: Readonly<Record<string, any>> }} message @returns {{ at: number, by: string, successor: string }[]} */
export const crashesOf = ({ meta }) => [meta.continued ?? []].flat().filter((one) => Number.isInteger(one?.at))

/** @param {Message} message */
const breaksOf = (message) => crashesOf(message).length + message.attempts.length

/** Return this window's marks, and those of the crashes that the agents have recorded. @param {readonly Message[]} messages @param {readonly Mark[]} own @returns {Mark[]} */
export const marksOf = (messages, own) => messages.flatMap((message) => [
  ...own.filter((one) => one.message === message.id),
  ...crashesOf(message).map(({ at, by, successor }) => ({ message: message.id, at, text: `${by} crashed here. **${by === successor ? "Its next process" : successor}** went on.` })),
])

/** An interrupted answer is not over: another agent goes on. @param {Message | undefined} answer */
const isOver = (answer) => Boolean(answer) && answer?.status !== "streaming" && answer?.status !== "interrupted"

export class Trials {
  /** What a button says now, instead of its result. @type {Record<string, string>} */
  notes = {}
  /** @type {Trial[]} */
  #pending = []
  /** The state before the connection or the page ended. @type {{ seen: Seen, ms: number, how: string } | null} */
  #gone = null
  /** @type {Seen | null} */
  #seen = null
  /** Texts of other windows, until as much is shown here. @type {Map<string, { from: string, message: string, text: string }>} */
  #theirs = new Map()
  #wasLive = false
  #isReported = false
  #crash_ms = 0

  /** @param {Page} page @param {import("../client.js").Channel<Record<string, any>>} channel */
  constructor(page, channel) {
    this.page = page
    this.channel = channel
    /** @type {Kept} */
    this.kept = { results: {}, marks: [], question: "", breaks: 0, lost: 0, pid: 0, left: null, ...recall(page.storage, "trials", {}) }
    const { left } = this.kept
    if (page.isReload && left?.channel === channel.name) this.#gone = { seen: left, ms: performance.now(), how: "reload" }
    this.#isReported = page.isReload
    addEventListener("pagehide", () => this.#keep({ left: this.question ? { channel: channel.name, ...this.#look() } : null }))
    channel.listen((event) => this.#receive(event))
    channel.subscribe(() => this.#notice())
  }

  /** The question that is being answered, or comes next, or else the newest one. @returns {Message | undefined} */
  get question() {
    const stored = this.channel.getSnapshot().all.filter(({ role, local }) => role === "user" && !local)
    const last = stored.findLastIndex(({ id }) => this.answerTo(id))
    return stored[last + Number(last < 0 || isOver(this.answerTo(stored[last].id)))] ?? stored.at(-1)
  }

  /** Return the shown answer to a question. @param {string} [id] @returns {Message | undefined} */
  answerTo = (id) => this.channel.getSnapshot().messages.findLast(({ role, reply_to }) => role === "assistant" && reply_to === id)

  get answer() {
    return this.question && this.answerTo(this.question.id)
  }

  /** Calls of a model for it. */
  get calls() {
    const { question } = this
    const answers = this.channel.getSnapshot().all.filter(({ role, reply_to }) => role === "assistant" && reply_to === question?.id)
    return answers.reduce((sum, { attempts }) => sum + 1 + attempts.length, 0)
  }

  /** @returns {Seen} */
  #look() {
    const { answer, question } = this
    return { question: question?.id ?? "", answer: answer?.id ?? "", text: answer?.text ?? "", isOver: isOver(answer), crashes: answer ? breaksOf(answer) : 0, by: answer?.meta.agent }
  }

  /** @param {Partial<Kept>} values */
  #keep(values) {
    keep(this.page.storage, "trials", Object.assign(this.kept, values))
  }

  #notice() {
    const isLive = this.channel.getSnapshot().state === "live"
    const wasLive = this.#wasLive
    this.#wasLive = isLive
    if (wasLive && !isLive && this.#seen) this.#gone ??= { seen: this.#seen, ms: performance.now(), how: "" }
    if (!isLive) return
    const { question } = this
    if (question && question.id !== this.kept.question) this.#keep({ question: question.id, breaks: 0, lost: 0 })
    if (wasLive) this.#noticeCrash()
    else void this.#returned()
    this.#seen = this.#look()
    this.#compareWindows()
    this.#settle()
  }

  /** The first complete view after a reload, or after a lost connection. */
  async #returned() {
    const { seen, ms, how } = this.#gone ?? { seen: null, ms: 0, how: "" }
    const { all, lastCatchUp } = this.channel.getSnapshot()
    const { points = 0, events = 0, ms: took_ms = 0 } = lastCatchUp ?? {}
    const others = how === "reload" ? all.filter(({ id, local }) => !local && id !== seen?.answer) : [] // a reload fetches each message in one event: the rest is the answer
    const text = counted(others.reduce((left, { text }) => left - size(text), points))
    const batch = `${counted(Math.max(1, events - others.length), "event")}, ${Math.ceil(took_ms || performance.now() - ms)} ms`
    this.#gone = null
    if (seen && how === "reload") {
      if (seen.text) this.#expect("reload", seen, `${text} in ${batch}`, `You reloaded here. **${text}** came back in **${batch}**`)
      else this.#expect("reload", seen, "before the first word: it came", "You reloaded here, **before the first word**", true)
    }
    if (seen && how === "offline") this.#expect("offline", seen, `${text} followed in ${batch}`, `You were offline here. **${text}** followed in **${batch}**`, !seen.text)
    this.#settle()
    const down = how === "reload" ? "" : `after ${seconds(ms)}`
    const { pid } = await this.page.info()
    if (seen && this.kept.pid && pid !== this.kept.pid) this.#expect("kill", seen, `kill -9 ${this.kept.pid} · back ${down}`, `Server killed here. Back **${down}**`, true)
    this.#keep({ pid })
    this.#settle()
    this.page.draw()
  }

  #noticeCrash() {
    const [seen, now] = [this.#seen, this.answer]
    if (!seen?.question || now?.id !== seen.answer || (breaksOf(now) === seen.crashes && (seen.text || now.meta.agent === seen.by))) return
    const isAnew = !crashesOf(now).length
    const { by = seen.by, successor = now.meta.agent } = crashesOf(now).at(-1) ?? {}
    const place = seen.text ? `after ${counted(size(seen.text))}` : "before the first word"
    const later = this.#crash_ms ? `, ${seconds(this.#crash_ms)} later` : ""
    if (isAnew) this.#expect("crash", seen, `${successor} answered anew${later}`, `${by} crashed ${place}. A model cannot continue, so **${successor} called it again**`, true, true)
    else this.#expect("crash", seen, `${successor} went on ${place}${later}`, "", true)
    this.#crash_ms = 0
  }

  /** Wait for what was promised. @param {string} id @param {Seen} seen before the trial @param {string} words @param {string} mark for an answer that was not complete @param {boolean} [mustMove] True: more text must come, too @param {boolean} [isAnew] True: another attempt goes on */
  #expect(id, seen, words, mark, mustMove = false, isAnew = false) {
    if (seen.question) this.#pending = [...this.#pending.filter((one) => one.id !== id), { id, seen, words, mark, mustMove, isAnew }]
  }

  /** End the trials whose promise held or did not hold. */
  #settle() {
    for (const trial of [...this.#pending]) {
      const { id, seen, words, mark, mustMove, isAnew } = trial
      const { all } = this.channel.getSnapshot()
      const shown = this.answerTo(seen.question)
      const kept = isAnew ? shown?.attempts.at(-1)?.parts.map(({ type, text }) => (type === "text" ? text : "")).join("") : shown?.text
      const hasMoved = shown && (isOver(shown) || size(shown.text) > (isAnew ? 0 : size(seen.text)))
      if (mustMove && !seen.isOver && !hasMoved && all.some((one) => one.id === seen.question)) continue
      const lost = lostOf(seen.text, kept ?? "")
      const isOk = lost === 0 && Boolean(shown) && shown?.status !== "failed"
      this.#pending = this.#pending.filter((one) => one !== trial)
      this.notes[id] = ""
      const isSame = seen.question === this.kept.question
      this.#keep({
        results: { ...this.kept.results, [id]: { isOk, words: isOk ? words : lost ? `${counted(lost)} lost` : "the answer did not come" } },
        breaks: this.kept.breaks + Number(isSame && id !== "window"), lost: this.kept.lost + (isSame ? lost : 0),
      })
      const ending = id === "kill" ? ", **0 characters lost**" : ""
      if (!mark || !isOk || seen.isOver || !shown) continue
      const others = this.kept.marks.filter((one) => one.message !== shown.id || one.trial !== id)
      this.#keep({ marks: [...others, { message: shown.id, at: isAnew ? 0 : size(seen.text), text: `${mark}${ending}`, trial: id }].slice(-50) })
    }
  }

  // -- other windows

  /** Send the other windows once the text that this one shows, and compare it with the texts that they have sent. */
  #compareWindows() {
    const { answer, channel, page } = this
    if (!this.#isReported && answer?.text) {
      channel.signal(SIGNAL, { window: WINDOW, message: answer.id, text: [...answer.text].slice(0, LONGEST).join("") })
      this.#isReported = true
    }
    const { all, presence } = channel.getSnapshot()
    for (const [window, { from, message, text }] of this.#theirs) {
      const mine = all.find(({ id }) => id === message)
      const member = presence.members.find(({ id }) => id === from)
      if (!mine?.reply_to || mine.text.length < text.length || !member) continue
      this.#theirs.delete(window)
      const name = from === page.client.id ? "your other window" : String(member.data?.name ?? from)
      this.#expect("window", { question: mine.reply_to, answer: message, text, isOver: false, crashes: 0 }, `${name} sees the same text`, "")
    }
  }

  /** @param {any} event of the wire */
  #receive({ type, name, from, data }) {
    if (type !== "signal" || name !== SIGNAL || typeof data?.text !== "string" || data.window === WINDOW) return
    this.#theirs.set(data.window, { from, message: data.message, text: data.text })
    this.#compareWindows()
    this.#settle()
    this.page.draw()
  }

  // -- the buttons

  /** @param {string} id @param {string} words while it runs @param {() => Promise<unknown>} request */
  async #press(id, words, request) {
    this.notes[id] = words
    this.page.draw()
    try {
      await request()
    } catch (error) {
      this.notes[id] = error instanceof Error ? error.message : String(error)
    }
    this.page.draw()
  }

  kill = () => this.#press("kill", "killed; it restarts…", () => post("/demo/kill", {}))

  crash = () => this.#press("crash", "killed; the other takes over…", async () => {
    const seen = this.#look()
    this.#crash_ms = performance.now()
    const { agent } = await post("/demo/crash", { channel: this.channel.name, question: seen.question })
    if (seen.isOver) this.#expect("crash", seen, `${agent} killed: the answer stays`, "")
    else if (!seen.answer) this.#expect("crash", seen, `${agent} killed: the other answered`, "", true)
    this.#settle()
  })

  /** Close the connection for ten seconds. */
  offline = () => this.#press("offline", "offline for ten seconds…", async () => {
    if (this.#gone) return
    this.#gone = { seen: this.#look(), ms: performance.now(), how: "offline" }
    this.page.client.suspend()
    setTimeout(() => this.page.client.resume(), OFFLINE_MS)
  })
}
