/**
 * Asking: questions on their way to the server.
 *
 * A question keeps its id until the server says that question and answer are stored; it is sent again through lost
 * replies, restarts and reloads of this page. Sending one twice is harmless, since its id makes it the same question.
 * Storage, fetch, time and chance are passed in; nothing here touches the page.
 * @module
 */

/** @typedef {{ id: string, text: string }} Question */

const FIRST_WAIT_MS = 400
const LONGEST_WAIT_MS = 4_000
const TIMEOUT_MS = 10_000

export class Asking {
  /** @type {Question[]} oldest first; sent one at a time, so that they are stored in the order they were asked */
  #waiting
  #isSending = false
  /** @type {(() => void) | null} ends the present wait */
  #wake = null

  /**
   * @param {object} options
   * @param {string} options.channel
   * @param {Pick<Storage, "getItem" | "setItem">} options.storage
   * @param {(questions: readonly Question[]) => void} options.onChange told what is still on its way
   * @param {(question: Question, why: string) => void} options.onRefused told when sending again cannot help
   * @param {typeof globalThis.fetch} [options.fetch]
   * @param {() => number} [options.random]
   */
  constructor({ channel, storage, onChange, onRefused, fetch = globalThis.fetch, random = Math.random }) {
    this.channel = channel
    this.storage = storage
    this.onChange = onChange
    this.onRefused = onRefused
    this.fetch = fetch.bind(globalThis)
    this.random = random
    this.key = `holdfast-demo.asking.${channel}`
    this.#waiting = readQuestions(storage.getItem(this.key))
  }

  /** @returns {readonly Question[]} */
  get waiting() {
    return this.#waiting
  }

  /** Go on with what an earlier life of this page began. */
  start() {
    if (this.#waiting.length > 0) void this.#send()
  }

  /** @param {string} text */
  ask(text) {
    this.#keep([...this.#waiting, { id: crypto.randomUUID(), text }])
    void this.#send()
  }

  /** Try now: the network or the server is back. */
  hurry() {
    this.#wake?.()
  }

  async #send() {
    if (this.#isSending) return
    this.#isSending = true
    for (let failures = 0; this.#waiting.length > 0; ) {
      const question = /** @type {Question} */ (this.#waiting[0])
      const outcome = await this.#post(question)
      if (outcome === "again") {
        await this.#wait(this.random() * Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** failures++))
        continue
      }
      failures = 0
      this.#keep(this.#waiting.filter(({ id }) => id !== question.id))
      if (outcome !== "stored") this.onRefused(question, outcome.why)
    }
    this.#isSending = false
  }

  /** @param {Question} question @returns {Promise<"stored" | "again" | { why: string }>} */
  async #post({ id, text }) {
    try {
      const response = await post(this.fetch, "/ask", { id, channel: this.channel, text })
      if (response.ok) return "stored"
      if (response.status >= 500 || response.status === 429) return "again"
      return { why: await detailOf(response) }
    } catch {
      return "again" // the server is away, or the reply was lost: either way the id makes it safe
    }
  }

  /** @param {number} ms */
  async #wait(ms) {
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, ms)
      this.#wake = () => {
        clearTimeout(timer)
        resolve(undefined)
      }
    })
    this.#wake = null
  }

  /** @param {Question[]} questions */
  #keep(questions) {
    this.#waiting = questions
    try {
      this.storage.setItem(this.key, JSON.stringify(questions))
    } catch {
      // Storage is full or forbidden: the question is then only as safe as this page.
    }
    this.onChange(questions)
  }
}

/**
 * Stop an answer for everybody.
 * @param {string} channel @param {string} id
 * @returns {Promise<string>} empty when it is done, otherwise why not
 */
export async function stop(channel, id) {
  try {
    const response = await post(fetch, "/stop", { channel, id })
    return response.ok ? "" : await detailOf(response)
  } catch {
    return "the server is away"
  }
}

/** @param {typeof globalThis.fetch} fetch @param {string} path @param {object} body */
function post(fetch, path, body) {
  return fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(TIMEOUT_MS),
  })
}

/** @param {Response} response @returns {Promise<string>} */
async function detailOf(response) {
  const problem = await response.json().catch(() => null)
  return problem?.detail || `the server answered ${response.status}`
}

/** @param {string | null} stored @returns {Question[]} */
function readQuestions(stored) {
  try {
    const found = JSON.parse(stored ?? "[]")
    return Array.isArray(found) ? found.filter((one) => typeof one?.id === "string" && typeof one?.text === "string") : []
  } catch {
    return []
  }
}
