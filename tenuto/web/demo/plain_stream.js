/** The same answer as a bare `StreamingResponse`, read by `fetch`: without a log, an id or a cursor. @module */

export class PlainStream {
  text = ""
  /** @type {"idle" | "streaming" | "complete" | "cut"} */
  state = "idle"
  #reading = new AbortController()

  /** @param {string} channel @param {string} message the answer with the same text and pace @param {() => void} draw */
  async start(channel, message, draw) {
    this.cut()
    const { signal } = (this.#reading = new AbortController())
    Object.assign(this, { text: "", state: "streaming" })
    try {
      const { ok, status, body } = await fetch(`/demo/plain?${new URLSearchParams({ channel, message })}`, { signal })
      if (!ok || !body) throw new Error(`status ${status}`)
      const pieces = body.pipeThrough(new TextDecoderStream()).getReader()
      for (let piece = await pieces.read(); !piece.done; piece = await pieces.read(), draw()) this.text += piece.value
      this.state = "complete"
    } catch {
      if (signal === this.#reading.signal) this.state = "cut"
    }
    draw()
  }

  /** End the stream, as a lost network does. */
  cut = () => this.#reading.abort()
}
