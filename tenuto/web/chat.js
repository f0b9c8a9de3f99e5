/** Defines `<tenuto-chat>`: a chat on any page, in one tag. @module */
import { TenutoChat } from "./element.js"

if ("HTMLElement" in globalThis && !customElements.get("tenuto-chat")) customElements.define("tenuto-chat", TenutoChat)
