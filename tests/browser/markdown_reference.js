/**
 * HTML in a form in which that of the chat element and that of another parser are equal if they show the same.
 *
 * It keeps elements, text, addresses of links, the alignment of cells, numbers of lists, languages of code and ticked boxes.
 * The rules of the chat element are applied to both: headings begin at level three, images are links with their
 * description, and a link to an address that is not absolute is its text. White space counts in code only.
 */
const BLOCKS = new Set("p h1 h2 h3 h4 h5 h6 ul ol li blockquote pre table thead tbody tr th td hr".split(" "))
const RENAMED = { h1: "h3", h2: "h4", h3: "h5", h4: "h6", h5: "h6", del: "s" }

/** Return the comparable form of the output of another parser. @param {string} html */
export function reference(html) {
  return serialised(new DOMParser().parseFromString(html, "text/html").body, (node) => {
    const name = RENAMED[node.localName] ?? node.localName
    const address = node.getAttribute(name === "img" ? "src" : "href")
    if (name === "img") return { name: link(address), text: node.alt || "image" }
    if (name === "a") return { name: link(address) }
    if (name === "pre") return { name: `pre ${languageOf(node.firstElementChild)}`.trim(), text: node.textContent.replace(/\n$/, "") }
    return { name: withAttributes(node, name, node.getAttribute("align")) }
  })
}

/** Return the comparable form of the nodes of the chat element. @param {Element} root */
export function shown(root) {
  return serialised(root, (node) => {
    const name = node.localName
    if (node.matches(".host")) return { name: "", text: "" }
    if (name === "a") return { name: link(node.getAttribute("href")) }
    if (name === "div" && node.className === "code") {
      const language = node.querySelector(".code-head > span").textContent
      return { name: `pre ${language}`.trim(), text: node.querySelector("code").textContent }
    }
    if (name === "div" || name === "span") return { name: "" }
    return { name: withAttributes(node, name, node.style.textAlign) }
  })
}

const isText = (node) => node.nodeType === Node.TEXT_NODE
const languageOf = (code) => /language-(\S+)/.exec(code?.className ?? "")?.[1] ?? ""

function link(address) {
  if (!/^(https?|mailto):/i.test(address ?? "")) return ""
  try {
    return `a ${new URL(address).href}`
  } catch {
    return ""
  }
}

function withAttributes(node, name, align) {
  const start = node.getAttribute("start")
  return [name, start && `start=${start}`, align && `align=${align}`, node.checked && "checked"].filter(Boolean).join(" ")
}

/** Return the elements and texts of `root`, one in a line. `describe` names an element, or "" for one that only has content. */
function serialised(root, describe) {
  const tokens = []
  const visit = (node) => {
    if (isText(node)) return tokens.push({ text: node.data })
    if (node.nodeType !== Node.ELEMENT_NODE) return
    const { name, text } = describe(node)
    const isBlock = BLOCKS.has(name.split(" ")[0])
    const isBreak = isBlock || name === "br" || name.startsWith("input")
    if (name) tokens.push({ tag: `<${name}>`, isBreak })
    if (text !== undefined) tokens.push({ text, isExact: isBlock })
    else node.childNodes.forEach(visit)
    if (name) tokens.push({ tag: `</${name.split(" ")[0]}>`, isBreak })
  }
  root.childNodes.forEach(visit)
  return withoutSpace(joined(tokens)).join("\n")
}

function joined(tokens) {
  const result = []
  for (const token of tokens) {
    const last = result.at(-1)
    if (token.text !== undefined && !token.isExact && last?.text !== undefined && !last.isExact) last.text += token.text
    else result.push({ ...token })
  }
  return result
}

function withoutSpace(tokens) {
  return tokens.flatMap(({ tag, text, isExact }, n) => {
    if (tag) return [tag]
    if (isExact) return [JSON.stringify(text)]
    let words = text.replace(/[ \t\r\n]+/g, " ")
    if (tokens[n - 1]?.isBreak ?? true) words = words.trimStart()
    if (tokens[n + 1]?.isBreak ?? true) words = words.trimEnd()
    return words ? [words] : []
  })
}
