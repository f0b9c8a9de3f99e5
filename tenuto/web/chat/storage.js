/** Values that a tab keeps through a reload, until a sign-out (`Outbox.forget`); without a storage they end with the page. @module */

/** @typedef {import("./panel.js").Panel} Panel */

/** Return a kept value of a chat, or null. @param {Panel} panel @param {string} name @returns {any} */
export function recall(panel, name) {
  try {
    return JSON.parse(/** @type {string} */ (sessionStorage.getItem(keyOf(panel, name))))
  } catch {
    return null
  }
}

/** Keep a value, unless the client is closed: a sign-out has removed the values. @param {Panel} panel @param {string} name @param {unknown} value */
export function keep(panel, name, value) {
  try {
    if (!panel.client.closing.aborted) sessionStorage.setItem(keyOf(panel, name), JSON.stringify(value))
  } catch { /* denied, or full */ }
}

/** @param {Panel} panel @param {string} name */
const keyOf = ({ client, channel }, name) => `chat-${client.outbox.prefix}${channel.name} ${name}`
