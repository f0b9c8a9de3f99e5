/**
 * Unsent questions: the questions that the server has not stored yet.
 *
 * The client repeats a request until it gets a response, but loses it with its page. This module therefore keeps each
 * question, with its id, until it is stored. A reloaded page sends it again, and the id makes it the same question.
 * Storage and sending are arguments; this module does not touch the page.
 * @module
 */

/** @typedef {{ id: string, text: string }} Question */

export class UnsentQuestions {
  /** @type {Question[]} oldest first; sent one at a time, so that they are stored in their order */
  #waiting
  #isSending = false

  /**
   * @param {object} options
   * @param {string} options.channel
   * @param {Pick<Storage, "getItem" | "setItem">} options.storage
   * @param {(question: Question) => Promise<unknown>} options.send resolves when it is stored, rejects when a repeat
   *   would fail too
   * @param {(questions: readonly Question[]) => void} options.onChange gets the unsent questions
   * @param {(question: Question, why: string) => void} options.onRefused
   */
  constructor({ channel, storage, send, onChange, onRefused }) {
    this.storage = storage
    this.send = send
    this.onChange = onChange
    this.onRefused = onRefused
    this.key = `holdfast-demo.unsent.${channel}`
    this.#waiting = readQuestions(storage.getItem(this.key))
  }

  /** @returns {readonly Question[]} */
  get waiting() {
    return this.#waiting
  }

  /** Send the questions that this page kept before a reload. */
  start() {
    void this.#sendAll()
  }

  /** @param {string} text */
  add(text) {
    this.#keep([...this.#waiting, { id: crypto.randomUUID(), text }])
    void this.#sendAll()
  }

  async #sendAll() {
    if (this.#isSending) return
    this.#isSending = true
    while (this.#waiting.length > 0) {
      const question = /** @type {Question} */ (this.#waiting[0])
      const why = await this.send(question).then(
        () => "",
        (/** @type {Error} */ error) => error.message || "refused",
      )
      this.#keep(this.#waiting.filter(({ id }) => id !== question.id))
      if (why) this.onRefused(question, why)
    }
    this.#isSending = false
  }

  /** @param {Question[]} questions */
  #keep(questions) {
    this.#waiting = questions
    try {
      this.storage.setItem(this.key, JSON.stringify(questions))
    } catch {
      // Storage is full or forbidden: the question is then lost with this page.
    }
    this.onChange(questions)
  }
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
