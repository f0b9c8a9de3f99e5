/**
 * Text as the wire counts it.
 *
 * Lengths on the wire are Unicode code points, JavaScript's are UTF-16 units, and a pair of units can be torn apart
 * by whoever cuts text into pieces. Pure; knows nothing of channels. `view` and `client` rely on every function here
 * costing no more than the text it is given.
 * @module
 */

/** How many code points `text` has. @param {string} text */
export function countPoints(text) {
  let points = text.length
  for (let i = 0; i < text.length; i++) if ((text.charCodeAt(i) & 0xfc00) === 0xdc00) points-- // the second of a pair
  return points
}

/** `text` without its first `points` code points. @param {string} text @param {number} points */
export function dropPoints(text, points) {
  let units = 0
  while (points-- > 0) units += (text.codePointAt(units) ?? 0) > 0xffff ? 2 : 1
  return text.slice(units)
}

/**
 * Writes one part: knows where the next piece goes, and never sends half a character.
 *
 * Models split emoji across their deltas. A first half at the end is held back and joined to the next piece; a half
 * that never finds its other half becomes U+FFFD, since on the wire it is refused.
 */
export class Pen {
  /** @param {number} at how many code points the part has */
  constructor(at) {
    this.at = at
    this.held = ""
  }

  /** Go on at `at`. What is held stays when that is where it stands, counted or not. @param {number} at */
  seek(at) {
    if (this.held && (at === this.at || at === this.at + 1)) return
    this.at = at
    this.held = ""
  }

  /** What can be sent now, and where it goes; may be nothing yet. @param {string} piece */
  write(piece) {
    const text = this.held + piece
    this.held = (text.charCodeAt(text.length - 1) & 0xfc00) === 0xd800 ? text.slice(-1) : ""
    return this.#place(text.slice(0, text.length - this.held.length))
  }

  /** What is still owed when nothing more comes. */
  end() {
    const { held } = this
    this.held = ""
    return this.#place(held)
  }

  /** @param {string} halves */
  #place(halves) {
    const text = halves.replace(/\p{Cs}/gu, "\ufffd") // with the u flag only halves without a partner match
    const { at } = this
    this.at += countPoints(text)
    return { at, text }
  }
}
