/**
 * Text as the wire counts it.
 *
 * Lengths on the wire are Unicode code points, those of JavaScript are UTF-16 units, and a model can split a pair of
 * units between two pieces of text. This module is pure and independent of channels. `view` and `client` rely on the
 * cost of each function: it is proportional to the given text.
 * @module
 */

/** Return the number of code points in `text`. @param {string} text */
export function countPoints(text) {
  return text.replace(/[\udc00-\udfff]/g, "").length // without the second units of surrogate pairs
}

/** Return `text` without its first `points` code points. @param {string} text @param {number} points */
export function dropPoints(text, points) {
  let units = 0
  while (points-- > 0) units += (text.codePointAt(units) ?? 0) > 0xffff ? 2 : 1
  return text.slice(units)
}

/**
 * The text of one part that is being written, with the offset of the next piece. It never returns half a character.
 *
 * Models split emoji across their deltas. The first half of a pair at the end is held back and joined to the next
 * piece. A half without its other half becomes U+FFFD, since the server refuses it.
 */
export class SurrogateJoiner {
  #held = ""

  /** @param {number} at the length of the part in code points */
  constructor(at) {
    this.at = at
  }

  /** Continue at offset `at`. A held half stays if it belongs there, counted or not. @param {number} at */
  seek(at) {
    if (this.#held && (at === this.at || at === this.at + 1)) return
    this.at = at
    this.#held = ""
  }

  /** Return the text to send now, possibly empty, and its offset. @param {string} piece */
  write(piece) {
    const text = this.#held + piece
    this.#held = (text.charCodeAt(text.length - 1) & 0xfc00) === 0xd800 ? text.slice(-1) : ""
    return this.#complete(text.slice(0, text.length - this.#held.length))
  }

  /** Return half of a character that `write` has held back, when no more text of the part follows. */
  end() {
    const held = this.#held
    this.#held = ""
    return this.#complete(held)
  }

  /** @param {string} halves */
  #complete(halves) {
    const text = halves.replace(/\p{Cs}/gu, "\ufffd") // with the u flag only halves without a partner match
    const { at } = this
    this.at += countPoints(text)
    return { at, text }
  }
}
