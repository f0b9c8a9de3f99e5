/**
 * Asking: questions on their way to the server.
 *
 * The client sends a request again until it is answered, but forgets it with its page. So a question is kept, with its
 * id, until it is stored; a page that was reloaded sends it again, and its id makes it the same question. Storage and
 * sending are passed in; nothing here touches the page.
 * @module
 */

/** @typedef {{ id: string, text: string }} Question */

export class Asking {
  /** @type {Question[]} oldest first; sent one at a time, so that they are stored in the order they were asked */
  #waiting
  #isSending = false

  /**
   * @param {object} options
   * @param {string} options.channel
   * @param {Pick<Storage, "getItem" | "setItem">} options.storage
   * @param {(question: Question) => Promise<unknown>} options.send resolves when it is stored, rejects when sending
   *   again cannot help
   * @param {(questions: readonly Question[]) => void} options.onChange told what is still on its way
   * @param {(question: Question, why: string) => void} options.onRefused
   */
  constructor({ channel, storage, send, onChange, onRefused }) {
    this.storage = storage
    this.send = send
    this.onChange = onChange
    this.onRefused = onRefused
    this.key = `holdfast-demo.asking.${channel}`
    this.#waiting = readQuestions(storage.getItem(this.key))
  }

  /** @returns {readonly Question[]} */
  get waiting() {
    return this.#waiting
  }

  /** Go on with what an earlier life of this page began. */
  start() {
    void this.#sendAll()
  }

  /** @param {string} text */
  ask(text) {
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
      // Storage is full or forbidden: the question is then only as safe as this page.
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
