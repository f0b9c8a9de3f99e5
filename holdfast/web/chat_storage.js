/** Values that a tab keeps through a reload; without a storage they end with the page. @module */

export class TabStorage {
  /** @param {string} place the channel, and the person in it */
  constructor(place) {
    this.place = place
  }

  /** Return a kept value, or null. @param {string} name @returns {any} */
  recall(name) {
    try {
      return JSON.parse(sessionStorage.getItem(this.#key(name)) ?? "null")
    } catch {
      return null
    }
  }

  /** @param {string} name @param {unknown} value */
  keep(name, value) {
    try {
      sessionStorage.setItem(this.#key(name), JSON.stringify(value))
    } catch { /* denied, or full */ }
  }

  /** @param {string} name */
  #key(name) {
    return `holdfast-${name} ${this.place}`
  }
}
