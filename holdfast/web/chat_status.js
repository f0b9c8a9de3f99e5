/** The one status line of the chat element. @module */
import { element, setText } from "./chat_nodes.js"
import { statusWords } from "./chat_people.js"

const SLOW_MS = 1_000 // time to connect after which the status line mentions it

export class StatusLine {
  node = element("p", { class: "status", part: "status" })
  unheard = false // True: the server has signalled that no agent serves the channel
  trouble = "" // the reason of a failed request that no message or button shows
  #isSlow = false

  /** @param {import("./chat_panel.js").Panel} panel */
  constructor(panel) {
    this.panel = panel
    setTimeout(() => {
      this.#isSlow = true
      panel.schedule()
    }, SLOW_MS)
  }

  /** @param {import("./channel.js").Snapshot} snapshot */
  draw(snapshot) {
    const { panel, node } = this
    const { error, status, streaming, typing } = snapshot
    if (streaming.length) this.unheard = false
    const words = statusWords(panel, snapshot, this.#isSlow)
    if (words && words !== node.textContent && !typing.length) panel.voice.speak(words)
    setText(node, words)
    node.classList.toggle("mistake", Boolean(error ?? status.error))
    node.hidden = !words
  }
}
