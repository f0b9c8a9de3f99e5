/** The words of the chat element, in English. An app replaces some of them by the property `strings`. @module */

export const STRINGS = {
  heading: "Chat",
  assistant: "Assistant",
  placeholder: "Message",
  placeholderRunning: "Ask the next question, or change this answer while it runs…",
  open: "Open chat",
  close: "Close chat",
  send: "Send",
  stop: "Stop",
  next: "Next question",
  steer: "Steer this answer",
  copy: "Copy",
  copied: "Copied",
  retry: "Try again",
  discard: "Discard",
  edit: "Edit",
  save: "Save",
  cancel: "Cancel",
  regenerate: "New answer",
  previous: "Previous version",
  following: "Next version",
  jump: "Jump to latest",
  empty: "Ask something.",
  thinking: "thinking…",
  answering: "answering…",
  stopped: "Stopped",
  interrupted: "Interrupted",
  failed: "Failed",
  refused: "Not sent",
  sending: "Sending…",
  reasoning: "Reasoning",
  running: "running…",
  allow: "Allow",
  deny: "Don’t allow",
  approve: "May the assistant do this?",
  answeredBy: "Answered by",
  connecting: "Connecting…",
  reconnecting: "Reconnecting…",
  offline: "Offline. Your messages will be sent later.",
  fromCache: "Your last view. Connecting…",
  closed: "Disconnected",
  typing: "is typing…",
  here: "here",
  readonly: "This chat is read-only.",
  complete: "Answer complete",
}

/** @typedef {typeof STRINGS} Strings */

/** Return the words of a language, or English. Other languages than English are loaded first. @param {string | null} lang @returns {Strings | Promise<Strings>} */
export function stringsOf(lang) {
  return /^de\b/i.test(lang ?? "") ? import("./chat_strings_de.js").then((module) => module.STRINGS, () => STRINGS) : STRINGS
}
