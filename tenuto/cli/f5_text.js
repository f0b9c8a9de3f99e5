/**
 * Return the lines of text that a person sees in the page, or in the elements of `selector`, also within shadow roots.
 * @param {string | null} selector
 */
(selector) => {
  const lines = [""]
  /** @param {Node} node */
  const read = (node) => {
    if (node.nodeType === Node.TEXT_NODE) lines[lines.length - 1] += node.nodeValue
    if (!(node instanceof Element) || /^(SCRIPT|STYLE|TEXTAREA|INPUT)$/.test(node.tagName)) return
    const { display } = getComputedStyle(node)
    const isSeen = display === "contents" || node.checkVisibility() // an element without a box is not visible, its children may be
    if (!isSeen || (node instanceof HTMLElement && node.isContentEditable)) return // a field holds no text of the page
    const isBlock = !/^(inline|contents)$/.test(display)
    if (isBlock) lines.push("")
    for (const one of (node.shadowRoot ?? node).childNodes) read(one)
    if (node instanceof HTMLSlotElement) for (const one of node.assignedNodes()) read(one)
    if (isBlock) lines.push("")
  }
  for (const one of selector === null ? [document.body] : document.querySelectorAll(selector)) read(one)
  return lines.map((line) => line.replace(/\s+/g, " ").trim()).filter(Boolean)
}
