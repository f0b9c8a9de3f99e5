/** The invitation: a link with a one-time secret, as a QR code and as text. Each use of it shows a new one. @module */
import { at, copyBy, post, say } from "./dom.js"

/** @param {boolean} isLan @param {() => string} channel @param {() => string} localLink for another window of this machine @returns {() => Promise<void>} shows a new link while the dialog is open */
export function invitations(isLan, channel, localLink) {
  let expiry = 0
  /** @param {string} link @param {string} words @param {Node[]} code */
  const show = (link, words, code) => void (at("qr").replaceChildren(...code), say(at("invite-words"), words), (at("invite-link").value = link))
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

/** Return a picture with the margin that readers need. @param {string[]} rows of 0 and 1 */
function drawn(rows) {
  const [image, path] = ["svg", "path"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name))
  image.setAttribute("viewBox", `-4 -4 ${rows.length + 8} ${rows.length + 8}`)
  path.setAttribute("d", rows.flatMap((row, y) => [...row].map((cell, x) => (cell === "1" ? `M${x} ${y}h1v1h-1z` : ""))).join(""))
  Object.assign(image, { role: "img", ariaLabel: "QR code of the link" }).append(path)
  return image
}
