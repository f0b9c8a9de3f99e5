/** The visitor: a name and a client id for a server that identifies no one, and autoplay for a visitor who only looks. @module */
import { keep, recall } from "./dom.js"

const NAMES = ["Ada", "Bea", "Cem", "Dina", "Emil", "Fay", "Gus", "Hana", "Ivo", "June", "Kai", "Lea"]
const [ASK_MS, POINT_MS] = [8_000, 5_000]

/** @param {string | null} wanted the name in the address @param {Pick<Storage, "getItem" | "setItem">} storage @param {() => number} [random] @returns {{ id: string, name: string }} */
export function whoAmI(wanted, storage, random = Math.random) {
  const known = recall(storage, "me", { id: "", name: "" })
  const asked = [...(wanted ?? "").replace(/[\s\p{Cc}\p{Cf}\p{Cs}]+/gu, " ").trim()].slice(0, 40).join("")
  if (known.id && known.name && (!asked || asked === known.name)) return known
  const name = asked || NAMES[Math.floor(random() * NAMES.length)]
  const me = { id: idOf(name) + (asked ? "" : `-${Math.floor(random() * 1e6)}`), name }
  keep(storage, "me", me)
  return me
}

/** Return a name that no present person has. @param {readonly string[]} taken */
export const freeName = (taken) => NAMES.find((name) => !taken.includes(name)) ?? `${NAMES[0]} ${taken.length}`
/** Return the client id of a name, in the few characters that are allowed; `@` distinguishes people from agents. @param {string} name */
export const idOf = (name) => `@${encodeURIComponent(name.toLowerCase()).replace(/%/g, "=").replace(/[!'()*~]/g, "_").slice(0, 50)}`

/** On the first visit of a tab, ask after some seconds without input, then point at the next step. @param {() => boolean} ask returns whether it asked @param {(isPointing: boolean) => void} point */
export function autoplay(ask, point) {
  const isFirst = !recall(sessionStorage, "visited", false)
  keep(sessionStorage, "visited", true)
  if (!isFirst || matchMedia("(prefers-reduced-motion: reduce)").matches) return
  let timer = setTimeout(() => ask() && (timer = setTimeout(() => point(true), POINT_MS)), ASK_MS)
  const end = () => (clearTimeout(timer), point(false))
  for (const type of ["pointerdown", "keydown", "touchstart", "wheel"]) addEventListener(type, end, { capture: true, once: true })
}
