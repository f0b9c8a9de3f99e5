/** DOM calls of the chat element. @module */

export const SPARK = "M12 2l2.2 7.8L22 12l-7.8 2.2L12 22l-2.2-7.8L2 12l7.8-2.2z"
const COPIED_MS = 1_500
const SVG = "http://www.w3.org/2000/svg"

/**
 * Return an element with attributes and children. `true` is an attribute without a value; false and null leave it out.
 * An element with a `part`, which pages may style by `::part`, has the same class unless another is given.
 *
 * @template {keyof HTMLElementTagNameMap} Name
 * @param {Name} name @param {Record<string, string | boolean | null | undefined>} attributes @param {...(Node | string)} children
 */
export function element(name, attributes, ...children) {
  const node = document.createElement(name)
  for (const [key, value] of Object.entries({ class: attributes.part, ...attributes })) {
    if (value !== false && value != null) node.setAttribute(key, value === true ? "" : value)
  }
  node.append(...children)
  return node
}

/** Return an icon of 24 × 24 units. @param {string} path */
export function svg(path) {
  const [image, line] = [document.createElementNS(SVG, "svg"), document.createElementNS(SVG, "path")]
  image.setAttribute("viewBox", "0 0 24 24")
  image.setAttribute("aria-hidden", "true")
  line.setAttribute("d", path)
  image.append(line)
  return image
}

/** Return a button that calls `onClick`. @param {string} label @param {string} name its part and class @param {() => unknown} onClick @param {...(Node | string)} children */
export function button(label, name, onClick, ...children) {
  const node = element("button", { type: "button", part: name, "aria-label": children.length ? label : null }, ...(children.length ? children : [label]))
  node.addEventListener("click", () => void onClick())
  return node
}

/** Set the text of `node` if it differs. @param {Node} node @param {string} text */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text
}

/** Let `node` have `text`, and keep its text node if the text only grows. @param {Node} node @param {string} text */
export function growText(node, text) {
  const last = node.firstChild
  if (last instanceof Text && text.startsWith(last.data)) last.appendData(text.slice(last.length))
  else setText(node, text)
}

/**
 * Copy `text`, and say so on `node` for a moment. Without https a browser has no clipboard but that of a selection.
 *
 * @param {HTMLElement} node a button @param {string} text @param {import("./strings.js").Strings} words
 */
export async function copyText(node, text, words) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text)
  else {
    const field = element("textarea", { readonly: true })
    field.value = text
    node.after(field)
    field.select()
    document.execCommand("copy")
    field.remove()
    node.focus()
  }
  setText(node, words.copied)
  setTimeout(() => setText(node, words.copy), COPIED_MS)
}
