/** Defines `<holdfast-chat>`: a chat on any page, in one tag. @module */
import { HoldfastChat } from "./element.js"

if ("HTMLElement" in globalThis && !customElements.get("holdfast-chat")) customElements.define("holdfast-chat", HoldfastChat)
