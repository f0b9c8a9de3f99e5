/**
 * A view as one batch: a new start that brings another view to the same state and cursor. The cache keeps it, and a tab
 * sends it to another tab.
 * @module
 */

/** @typedef {import("../view.js").View} View */

/** Return the state of `view`; null before its first start and inside a batch. @param {View} view @returns {{ cursor: string, events: any[] } | null} */
export function dump(view) {
  const { cursor, before, isWhole } = view
  if (!isWhole || !cursor) return null
  const { messages, more, presence, commands } = view.getSnapshot()
  const updates = messages.map((message) => ({ type: "message.update", serial: message.version, message }))
  return { cursor, events: [{ type: "channel.attached", before, more, presence, commands }, ...updates] }
}
