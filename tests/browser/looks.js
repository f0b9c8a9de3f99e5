// Functions that tests of accessibility run in a page.

// Define `focused()`: the focused element, and whether a person sees it.
const defineFocused = () => { window.focused = () => {
  const node = document.activeElement.shadowRoot?.activeElement ?? document.activeElement
  const ring = getComputedStyle((node.localName === "textarea" && node.closest(".composer")) || node)
  const hasRing = ring.outlineStyle !== "none" && parseFloat(ring.outlineWidth) >= 1
  const isSeen = hasRing && node.checkVisibility({ opacityProperty: true })
  return { name: node.ariaLabel ?? node.textContent.trim() ?? "", tag: node.localName, isSeen }
} }

const small = () => [...document.querySelectorAll("tenuto-chat")]
  .flatMap(({ shadowRoot }) => [...shadowRoot.querySelectorAll("button, summary, a.source")])
  .filter((node) => node.getClientRects().length && (node.offsetWidth < 44 || node.offsetHeight < 44))
  .map((node) => `${node.className || node.localName} ${node.offsetWidth} x ${node.offsetHeight}`)

const moving = () => [...document.querySelector("tenuto-chat").shadowRoot.querySelectorAll("*")].flatMap((node) => {
  const { transitionDuration, animationName } = getComputedStyle(node)
  return parseFloat(transitionDuration) > 0 || animationName !== "none" ? [node.className] : []
})

// Record each text of the live region with its time.
const listen = () => {
  const root = document.querySelector("tenuto-chat").shadowRoot
  const region = root.querySelector("[role=status]")
  window.spoken = []
  new MutationObserver(() => window.spoken.push({ text: region.textContent, at: performance.now() }))
    .observe(region, { childList: true, characterData: true, subtree: true })
}

// Find text and icons that a person cannot tell from their ground, and controls whose focus is not seen.
const unseen = () => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true })
  const known = new Map()
  const pixels = (colour) => known.get(colour) ?? known.set(colour, draw(colour)).get(colour)
  const draw = (colour) => {
    canvas.clearRect(0, 0, 1, 1)
    canvas.fillStyle = colour
    canvas.fillRect(0, 0, 1, 1)
    return [...canvas.getImageData(0, 0, 1, 1).data]
  }
  const light = ([red, green, blue]) => [red, green, blue].map((one) => one / 255)
    .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
    .reduce((sum, one, n) => sum + one * [0.2126, 0.7152, 0.0722][n], 0)
  const contrast = (one, other) => {
    const [low, high] = [light(pixels(one)), light(pixels(other))].sort((a, b) => a - b)
    return (high + 0.05) / (low + 0.05)
  }
  const parent = (node) => node.parentElement ?? node.getRootNode().host
  const ground = (node) => {
    for (; node; node = parent(node)) {
      const { backgroundColor } = getComputedStyle(node)
      if (pixels(backgroundColor)[3]) return backgroundColor
    }
    return "Canvas"
  }
  const unseen = []
  const counts = { texts: 0, controls: 0 }
  for (const chat of document.querySelectorAll("tenuto-chat")) {
    const name = chat.getAttribute("channel")
    const fail = (node, why) => unseen.push(`${name} ${node.localName}.${node.className} ${why}`)
    for (const node of chat.shadowRoot.querySelectorAll(":not(svg, path, slot)")) {
      const isControl = node.matches("button, textarea, summary, a[href]")
      const hasText = [...node.childNodes].some((one) => one instanceof Text && one.data.trim())
      if (node.closest(":disabled") || !node.checkVisibility()) continue
      if (isControl) {
        counts.controls++
        node.focus({ preventScroll: true })
        const ring = (node.localName === "textarea" && node.closest(".composer")) || node
        const { outlineStyle, outlineWidth, outlineColor } = getComputedStyle(ring)
        const hasRing = outlineStyle === "solid" && parseFloat(outlineWidth) >= 1
        if (!hasRing || contrast(outlineColor, ground(parent(ring))) < 3) fail(node, `focus ${outlineColor}`)
        if (!node.checkVisibility({ opacityProperty: true })) fail(node, "focused, and transparent")
      }
      if (!hasText && !isControl) continue
      counts.texts++
      const { color } = getComputedStyle(node, node.localName === "textarea" && !node.value ? "::placeholder" : null)
      if (contrast(color, ground(node)) < 4.5) fail(node, `text ${color} on ${ground(node)}`)
    }
  }
  return { unseen, counts }
}

const parts = () => {
  const chats = [...document.querySelectorAll("tenuto-chat")]
  const nodes = chats.flatMap(({ shadowRoot }) => [...shadowRoot.querySelectorAll("*")])
  const others = nodes.filter((node) => !node.part.length && !node.closest(".markdown") && !node.closest("svg"))
  return {
    parts: [...new Set(nodes.flatMap((node) => [...node.part]))],
    others: [...new Set(others.flatMap((node) => [...node.classList]))],
    controls: others.filter((node) => node.matches("button, textarea, details, summary, a")).length,
  }
}

const findings = async () => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"] })
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical")
  return serious.flatMap(({ id, nodes }) => nodes.map((node) => `${id} ${node.target}: ${node.failureSummary}`))
}

// Elements that reach out of the panel, and parts of the panel that scroll sideways. Code and tables may.
// A message out of view has no size of its own, so all are drawn.
const cut = () => [...document.querySelectorAll("tenuto-chat")].flatMap((chat) => {
  const name = chat.getAttribute("channel")
  const sheet = new CSSStyleSheet()
  sheet.replaceSync("* { content-visibility: visible !important }")
  chat.shadowRoot.adoptedStyleSheets.push(sheet)
  const panel = chat.shadowRoot.querySelector(".panel")
  if (!panel?.getClientRects().length) return []
  const { left, right } = panel.getBoundingClientRect()
  const all = (selector) => [...panel.querySelectorAll(selector)]
  const wide = all(".log, .composer, .row, .choices, .approval, .body, .actions, header")
    .filter((node) => node.scrollWidth > node.clientWidth + 1)
  const out = all("button, h2, p, .author, .state, textarea, summary, .source").filter((node) => {
    const box = node.getBoundingClientRect()
    return box.width > 1 && !node.closest("table, pre, .math") && (box.left < left - 1 || box.right > right + 1)
  })
  const words = ({ localName, className, textContent }) => `${localName}.${className} ${textContent.slice(0, 30)}`
  return [...wide, ...out].map((node) => `${name}: ${words(node)}`)
})
