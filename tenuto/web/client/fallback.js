/**
 * The parts of the client for networks that block WebSockets: streams, long polls, requests over HTTP, and the way back.
 *
 * The client loads this module when its first connection is open, or earlier if it needs it.
 * @module
 */

export { sendAll, sendOne, tryWebSocket } from "./http.js"
export { dial as poll } from "./poll.js"
export { dial as sse } from "./stream.js"
