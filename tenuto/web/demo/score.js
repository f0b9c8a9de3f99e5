/** The scores: the trials of this window and how much text survived each, as measured. They survive a reload. @module */
import { counted, keep, recall, size } from "./dom.js"

/** @typedef {{ message: string, at: number, text: string, isKill?: boolean }} Mark `at` counts code points of the message's text */
/** @typedef {{ message: string, text: string, status: string }} Answer as it was shown */
/** @typedef {{ channel: string, answer: Answer | null, plain: number }} Before the texts that the page showed when it was left */
/** @typedef {{ boxes: Record<string, { count: number, isOk: boolean, words: string }>, marks: Mark[], reloads: number, deaths: number, lost: number, plainLost: number, starts: number, kill: string, before: Before | null }} Kept */

/** Return the number of characters of `before` that are missing from the beginning of `after`. @param {string} before @param {string} after */
export function lostOf(before, after) {
  let same = after.startsWith(before) ? before.length : 0
  while (same < before.length && before[same] === after[same]) same++
  return size(before.slice(same))
}

export class Score {
  /** @param {Pick<Storage, "getItem" | "setItem">} storage */
  constructor(storage) {
    this.storage = storage
    /** @type {Kept} */
    this.kept = { boxes: {}, marks: [], reloads: 0, deaths: 0, lost: 0, plainLost: 0, starts: 0, kill: "", before: null, ...recall(storage, "score", {}) }
  }

  /** @param {Partial<Kept>} values */
  keep = (values) => keep(this.storage, "score", Object.assign(this.kept, values))

  /** Tick a box if `after` begins with all of `before`. Return the number of lost characters. @param {string} id @param {string} before @param {string} after @param {string} words */
  settle(id, before, after, words) {
    const { boxes, lost: all } = this.kept
    const lost = lostOf(before, after)
    this.keep({ boxes: { ...boxes, [id]: { count: (boxes[id]?.count ?? 0) + 1, isOk: lost === 0, words: lost ? `${counted(lost)} lost` : words } }, lost: all + lost })
    return lost
  }

  /** Note which process serves. Return the number of servers that died since the last call. @param {{ starts: number, kill: string }} info */
  seeServer({ starts, kill }) {
    const deaths = this.kept.starts ? Math.max(0, starts - this.kept.starts) : 0
    this.keep({ starts, kill, deaths: this.kept.deaths + deaths })
    return deaths
  }
}

/** Return where a writer ended and another continued; it is a crash unless the same one continued, after a restart of the server. @param {{ meta: Readonly<Record<string, any>> }} message */
export function breaksOf({ meta }) {
  return [meta.continued ?? []].flat().filter((one) => Number.isInteger(one?.at)).map(({ at, by, successor }) => ({ at, by, successor, isCrash: Boolean(by) && by !== successor }))
}

/** Return the marks of this window, and of the breaks that the server has recorded. @param {readonly import("../client.js").Message[]} messages @param {readonly Mark[]} own @returns {Mark[]} */
export function marksOf(messages, own) {
  return messages.flatMap((message) => {
    const mine = own.filter((one) => one.message === message.id)
    const breaks = breaksOf(message).map(({ at, by, successor, isCrash }, index, all) => {
      const seen = mine.find((one) => one.isKill && one.at <= at && one.at >= (all[index - 1]?.at ?? 0))
      return { message: message.id, at, text: isCrash ? `${by} crashed here. **${successor}** went on.` : seen?.text ?? "Server restarted here. **Nothing was lost.**" }
    })
    return [...mine.filter(({ isKill }) => !isKill), ...breaks]
  })
}
