/**
 * Me: the identity of the person at this window. The demo does not verify it.
 *
 * A person's id follows from their first name (`?as=Name`, or a random one), so two windows with one name are one person
 * with two windows. A person may change the name later; the id stays. Pure except for the storage.
 * @module
 */

/** @typedef {{ id: string, name: string, came: string }} Me `came`: the first name */

const KEY = "holdfast-demo.me"
const LONGEST_NAME = 40
const NAMES = ["Crab", "Dunlin", "Eider", "Heron", "Limpet", "Otter", "Puffin", "Seal", "Tern", "Urchin", "Whelk"]

/**
 * @param {string | null} wanted the name in the address
 * @param {Pick<Storage, "getItem" | "setItem">} storage of this window
 * @param {() => number} [random]
 * @returns {Me}
 */
export function whoAmI(wanted, storage, random = Math.random) {
  const known = readMe(storage.getItem(KEY))
  const requested = tidy(wanted ?? "")
  if (known && (!requested || requested === known.came)) return known
  const name = requested || drawName(random)
  return keepMe({ id: idOf(name), name, came: name }, storage)
}

/** @param {Me} me @param {string} name @param {Pick<Storage, "setItem">} storage @returns {Me} */
export function rename(me, name, storage) {
  return keepMe({ ...me, name: tidy(name) || me.came }, storage)
}

/** Return a random name. @param {() => number} [random] */
export function drawName(random = Math.random) {
  return `${NAMES[Math.floor(random() * NAMES.length)]} ${10 + Math.floor(random() * 90)}`
}

/** Return the client id of a name, in the few allowed characters; `@` distinguishes people from agents. @param {string} name */
export function idOf(name) {
  const spelled = [...name.toLowerCase().normalize()].map((letter) => {
    if (/[a-z0-9]/.test(letter)) return letter
    return letter === " " ? "-" : `=${letter.codePointAt(0)?.toString(16)}`
  })
  return `@${spelled.join("").slice(0, 60)}`
}

/** @param {string} name */
function tidy(name) {
  const mended = name.replace(/\p{Cs}/gu, "\ufffd").replace(/[\s\p{Cc}\p{Cf}]+/gu, " ").trim()
  return [...mended].slice(0, LONGEST_NAME).join("")
}

/** @param {Me} me @param {Pick<Storage, "setItem">} storage */
function keepMe(me, storage) {
  try {
    storage.setItem(KEY, JSON.stringify(me))
  } catch {
    // Storage is full or forbidden: the next page is then another person.
  }
  return me
}

/** @param {string | null} stored @returns {Me | null} */
function readMe(stored) {
  try {
    const { id, name, came } = JSON.parse(stored ?? "null") ?? {}
    return [id, name, came].every((one) => typeof one === "string" && one) ? { id, name, came } : null
  } catch {
    return null
  }
}
