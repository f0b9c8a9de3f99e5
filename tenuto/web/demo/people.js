/** People: the name of a visitor whom no server identifies, and invitations by link and QR code. @module */
import { at, keep, post, recall, say } from "./dom.js"

const NAMES = ["Ada", "Bea", "Cem", "Dina", "Emil", "Fay", "Gus", "Hana", "Ivo", "June", "Kai", "Lea"]

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

/** @param {boolean} isLan @param {() => string} channel @param {() => string} localLink for another window of this machine @returns {() => Promise<void>} shows a new link while the dialog is open: each works once */
export function invitations(isLan, channel, localLink) {
  let expiry = 0
  /** @param {string} link @param {string} words @param {Node[]} code */
  function show(link, words, code) {
    at("qr").replaceChildren(...code)
    say(at("invite-words"), words)
    at("invite-link").value = link
  }
  async function renew() {
    clearTimeout(expiry)
    if (!at("invite").open) return
    if (!isLan) return show(localLink(), "This link works in another window on this machine. To let other people in, end the demo and start it with: make demo LAN=1 (tenuto demo --lan)", [])
    try {
      const { url, expiresInSeconds, qr } = await post("/demo/invites", { channel: channel() })
      show(url, `Scan the code, or send the link. It is good for one person and for ${Math.round(expiresInSeconds / 60)} minutes.`, qr ? [drawn(qr)] : [])
      expiry = window.setTimeout(() => void renew(), expiresInSeconds * 1_000)
    } catch (error) {
      show("", error instanceof Error ? error.message : "", [])
    }
  }
  at("open-invite").onclick = () => (at("invite").showModal(), renew())
  at("close-invite").onclick = () => at("invite").close()
  at("copy-invite").onclick = () => (at("invite-link").select(), copyBy(at("copy-invite"), at("invite-link").value))
  return renew
}

/** Copy `text`, and say so on the button for a moment. A page without https has no clipboard. @param {HTMLElement} button @param {string} text */
async function copyBy(button, text) {
  say(button, (await navigator.clipboard?.writeText(text).then(() => true, () => false)) ? "Copied" : "Not allowed")
  setTimeout(() => say(button, "Copy"), 1_500)
}

/** Return the picture of a QR code. @param {string[]} rows of 0 and 1 */
function drawn(rows) {
  const [image, path] = ["svg", "path"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name))
  image.setAttribute("viewBox", `-4 -4 ${rows.length + 8} ${rows.length + 8}`)
  path.setAttribute("d", rows.flatMap((row, y) => [...row].map((cell, x) => (cell === "1" ? `M${x} ${y}h1v1h-1z` : ""))).join(""))
  Object.assign(image, { role: "img", ariaLabel: "QR code of the link" }).append(path)
  return image
}
