/**
 * The diagnosis after the first failed connection: why this page does not reach a Tenuto server.
 *
 * To a page a dead port and a refused origin are the same network error. A second request, with `no-cors`, tells them
 * apart: its response is opaque, but only a running server gives one.
 * @module
 */

import { TenutoError, refusal } from "./errors.js"

const PROTOCOL = 1
const PROBE_MS = 3_000 // time limit of both requests together
const REPORT_MS = 50 // time to wait for the report of a policy violation, which the browser sends in a later task

/** Say why a client has no connection, if that can be found out. @param {import("../client.js").Client} client */
export async function probe(client) {
  const isFirst = client.state === "connecting" && !client.status.error
  const error = isFirst ? await diagnose(client) : null
  if (error) {
    if (client.state === "connecting") client.explain(error)
  } else if ((await areCookiesRefused(client)) && client.state !== "live") client.tokenRefused(undefined, false)
}

/**
 * Return whether a hub does not accept the cookies of a page. It does not see why a WebSocket is refused; other
 * transports see it.
 * @param {import("../client.js").Client} client
 */
async function areCookiesRefused(client) {
  const { base, token, options } = client
  const [name] = client.channels.keys()
  const isOfProgram = options.WebSocket && !options.fetch // it may send headers that a request lacks
  if (options.transport !== "websocket" || token.source !== undefined || name === undefined || isOfProgram) return false
  const signal = AbortSignal.timeout(PROBE_MS)
  const { status } = await client.fetch(`${base}/v1/channels/${encodeURIComponent(name)}`, { method: "HEAD", credentials: "include", cache: "no-store", signal })
  return status === 401
}

/**
 * Return the error that explains the failure, or null if the server responds as it should.
 * @param {{ base: string, fetch: typeof globalThis.fetch }} client
 */
export async function diagnose(client) {
  const { base } = client
  const page = globalThis.location
  const { protocol, hostname } = new URL(base)
  if (page?.protocol === "https:" && protocol === "http:" && !/^((.+\.)?localhost|127\.[\d.]+|\[::1\])$/.test(hostname)) {
    return refusal("mixed_content", `the page has https, so the browser blocks ${base}: serve Tenuto over https`)
  }
  const address = `${base}/v1`
  const signal = AbortSignal.timeout(PROBE_MS)
  /** @type {string | undefined} */
  let directive
  /** @param {SecurityPolicyViolationEvent} event */
  const blocked = ({ blockedURI, effectiveDirective }) => {
    if (blockedURI.startsWith(new URL(base).origin)) directive = effectiveDirective
  }
  globalThis.document?.addEventListener?.("securitypolicyviolation", blocked)
  try {
    const response = await client.fetch(address, { signal, cache: "no-store" })
    const body = await response.json().catch(() => ({}))
    if (body?.server === "tenuto" && body.protocol !== PROTOCOL) {
      return refusal("unsupported_protocol", `${base} speaks protocol ${body.protocol}, this client ${PROTOCOL}: use the client of the server's release, for example ${base}/web/client.js`)
    }
    if (body?.server === "tenuto") return body.problem ? new TenutoError(body.problem.code, body.problem) : null
    if (typeof body?.code === "string" && body.code !== "not_found") return refusal(body.code, `${address} sent status ${response.status}: read its log`, body)
    return refusal("not_tenuto", `${base} sent status ${response.status}, but not as a Tenuto server: correct its address`)
  } catch {
    const isThere = await client.fetch(address, { mode: "no-cors", signal }).then(() => true, () => false)
    if (globalThis.document) await new Promise((resolve) => setTimeout(resolve, REPORT_MS))
    if (directive) {
      return refusal("blocked_by_csp", `the page's Content-Security-Policy blocks ${base}: add ${new URL(base).origin} to ${directive}`)
    }
    if (isThere && page && new URL(base).origin !== page.origin) {
      return refusal("origin_refused", `${base} refuses requests of this page: give its hub allowed_origins=["${page.origin}"]`)
    }
    return refusal("unreachable", `${base} does not respond: start it, or correct its address`)
  } finally {
    globalThis.document?.removeEventListener?.("securitypolicyviolation", blocked)
  }
}
