// Functions that tests of the chat element run in its page.

// The page makes the client itself, so that a test can disconnect it, and keeps the events of the element.
const mount = async ([options, attributes, pages]) => {
  const { connect } = await import("/tenuto/web/client.js")
  window.client = connect({ url: "/tenuto", ...options })
  window.channel = client.channel("chat:1")
  if (pages) {
    const isLive = () => channel.state === "live"
    await new Promise((resolve) => channel.subscribe(() => isLive() && resolve()))
    for (let n = 0; n < pages; n++) await channel.loadOlder(200)
  }
  window.told = []
  window.chat = document.createElement("tenuto-chat")
  for (const [name, value] of Object.entries({ channel: "chat:1", ...attributes })) chat.setAttribute(name, value)
  for (const name of ["send", "answer", "ask", "status", "open", "close", "error", "link"]) {
    chat.addEventListener(`tenuto-${name}`, (event) => told.push([name, event.detail]))
  }
  chat.client = client
  document.querySelector("tenuto-chat")?.remove()
  document.body.append(chat)
  window.root = chat.shadowRoot
  window.shown = (selector) => [...root.querySelectorAll(selector)].filter((node) => node.getClientRects().length)
  if (!("launcher" in attributes)) while (!root.querySelector("textarea")) await new Promise(requestAnimationFrame)
}

// Keeps in `moved` how far the link has moved in any frame, in pixels.
const trackMoves = () => {
  const link = root.querySelector("article a")
  const top = link.getBoundingClientRect().top
  window.moved = 0
  const look = () => {
    moved = Math.max(moved, Math.abs(link.getBoundingClientRect().top - top))
    requestAnimationFrame(look)
  }
  look()
}

// Gives a floating chat the styles of a page; returns its place, and those that its text has.
const styled = () => {
  const host = document.querySelector("tenuto-chat")
  host.style.cssText = `height: 100dvh; width: 90%; min-height: 300px; min-width: 300px; max-height: 9px;
    text-align: center; text-transform: uppercase; letter-spacing: 9px; white-space: nowrap`
  const { right, bottom, width, height } = host.getBoundingClientRect()
  const { textAlign, textTransform, letterSpacing, whiteSpace } = getComputedStyle(host.shadowRoot.querySelector("[part=log]"))
  return [[innerWidth - right, innerHeight - bottom, width, height], [textAlign, textTransform, letterSpacing, whiteSpace].join(" ")]
}

const show = attributes => {
  const chat = document.createElement("tenuto-chat")
  for (const [name, value] of Object.entries(attributes)) chat.setAttribute(name, value)
  document.body.replaceChildren(chat)
}

const reflected = async () => {
  const before = document.createElement("tenuto-chat") // the tag is not defined yet
  const values = {
    url: "/tenuto", channel: "chat:1", heading: "Title", placeholder: "Ask", theme: "dark", images: "same-origin",
    token: "t", identity: "ann", launcher: true, open: true, readonly: true,
  }
  Object.assign(before, values)
  document.body.append(before)
  await import("/tenuto/web/chat.js")
  const after = Object.assign(document.createElement("tenuto-chat"), values)
  const attributes = (chat) => Object.fromEntries([...chat.attributes].map(({ name, value }) => [name, value]))
  const read = (chat) => Object.fromEntries(Object.keys(values).map((name) => [name, chat[name]]))
  const text = (fields) => JSON.stringify(Object.entries(fields).sort())
  const set = [attributes(before), attributes(after), read(before), read(after)].map(text)
  Object.assign(after, { heading: null, launcher: "", open: false, readonly: undefined })
  before.remove()
  return [set, text(values), [after.heading, after.launcher, after.open, after.readonly]]
}

const tag = async (url) => {
  await import("/tenuto/web/chat.js")
  const { connect } = await import("/tenuto/web/client.js")
  document.body.innerHTML = `<tenuto-chat channel="chat:1" url="${url}"></tenuto-chat>`
  window.channel = connect({ url }).channel("chat:1")
  channel.getSnapshot() // an app keeps it until the next change
}

// Returns how many messages a hidden chat has and whether no older ones are loaded, and the number once it is shown in a high place.
const loadWhenShown = async () => {
  const frame = () => new Promise(requestAnimationFrame)
  const count = () => root.querySelectorAll("article").length
  while (count() < 50) await frame()
  for (let n = 0; n < 3; n++) await frame()
  const hidden = [count(), root.querySelector("[part=older]").hidden]
  chat.style.height = "30000px"
  chat.hidden = false
  for (const end = performance.now() + 10_000; count() < 120 && performance.now() < end; ) await frame()
  return [...hidden, count()]
}

// Load older messages by a scroll, and return how far the first visible message has moved in any frame, in pixels.
const loadOlderByScroll = async () => {
  const log = root.querySelector(".log")
  const frame = () => new Promise(requestAnimationFrame)
  log.scrollTop = 20
  await frame()
  const edge = log.getBoundingClientRect().top
  const all = [...root.querySelectorAll("article")]
  const one = all.find((node) => node.getBoundingClientRect().bottom > edge)
  const top = one.getBoundingClientRect().top
  let moved = 0
  for (let left = 10; left > 0; ) {
    await frame()
    if (root.querySelectorAll("article").length > 50) left--
    moved = Math.max(moved, Math.abs(one.getBoundingClientRect().top - top))
  }
  return moved
}

// Whether the question that was sent stands at the top of the view.
const isAtTop = () => {
  const question = [...root.querySelectorAll("article")].find((node) => node.textContent.includes("My question"))
  const top = question.getBoundingClientRect().top - root.querySelector(".log").getBoundingClientRect().top
  return top >= 0 && top <= 40
}

const drawOwnParts = async () => {
  const chat = document.createElement("tenuto-chat") // before its tag is defined
  chat.setAttribute("channel", "chat:1")
  chat.renderPart = ({ name }) => {
    if (name === "broken") throw new Error("no such chart")
    return name === "chart" ? Object.assign(document.createElement("b"), { textContent: "a chart" }) : null
  }
  document.body.append(chat)
  await import("/tenuto/web/chat.js")
  window.root = chat.shadowRoot
}

const tagWithAll = ([token, variables]) => {
  const chat = document.createElement("tenuto-chat")
  const attributes = { channel: "chat:1", url: "/tenuto", lang: "de", theme: "dark",
    images: "same-origin", placeholder: "Frag uns", heading: "Hilfe" }
  for (const [name, value] of Object.entries(attributes)) chat.setAttribute(name, value)
  for (const [name, [value]] of Object.entries(variables)) chat.style.setProperty(`--tenuto-${name}`, value)
  chat.tokenProvider = async () => token
  chat.strings = { copy: "Abschreiben" }
  chat.renderMath = (tex) => Object.assign(document.createElement("var"), { textContent: tex })
  document.body.append(chat)
  window.root = chat.shadowRoot
}

// Puts another element for the same client into the page, and returns the time to the first frame with messages, and
// that to the last message.
const measure = async () => {
  while (channel.getSnapshot().hasOlder) await channel.loadOlder(200)
  chat.remove()
  await new Promise((done) => setTimeout(done)) // it has let go of its nodes
  const next = document.createElement("tenuto-chat")
  next.setAttribute("channel", "chat:1")
  next.client = client
  const frame = () => new Promise(requestAnimationFrame)
  const start = performance.now()
  document.body.append(next)
  window.chat = next
  const root = next.shadowRoot
  while (!root.querySelector("article")) await frame()
  await frame()
  const first = performance.mark("first").startTime
  const isWhole = () => (IS_WHOLE)(root, channel.getSnapshot())
  for (; !isWhole(); await frame()) {
    if (performance.now() - start > 60_000) throw new Error("not all was built within a minute")
  }
  const last = performance.now()
  for (let n = 0; n < 3; n++) await frame() // the recording has the tasks of whole frames
  return [first - start, last - start]
}

const shownAnswer = ([n, isOver]) => {
  const last = root.querySelector(".messages").lastElementChild
  return last.innerText.includes(`Answer ${n}`) && (last.dataset.status === "complete") === isOver
}

// Lets a millisecond pass with each look at the clock, and counts how many messages a frame draws at most: each drawing
// looks for the branches of its message.
const countDrawn = () => {
  const clock = performance.now.bind(performance)
  const find = channel.branches.bind(channel)
  let looks = 0
  let count = 0
  window.drawn = { inAll: 0, most: 0 }
  performance.now = () => clock() + looks++
  channel.branches = (id) => {
    if (!count++) requestAnimationFrame(() => (count = 0))
    drawn.inAll++
    drawn.most = Math.max(drawn.most, count)
    return find(id)
  }
}

// Marks the time at which the page has received the long text.
const markReceived = () => {
  const stop = channel.subscribe(() => {
    if (channel.getSnapshot().messages[0].text.length < 100) return
    stop()
    performance.mark("received")
  })
}

// The frame of a message, and the least work of its receiver.
const encode = () => {
  const { id, text } = channel.getSnapshot().messages[0]
  const event = { type: "message.append", serial: 3, id, part: 0, at: 16, text }
  const frame = { type: "events", channel: "chat:1", events: [event] }
  window.frame = new TextEncoder().encode(JSON.stringify(frame))
}

const parse = () => {
  window.parsed = JSON.parse(new TextDecoder().decode(frame))
  performance.mark("parsed")
}

// Waits until the page has received and drawn `length` characters.
const untilDrawn = async length => {
  const text = () => channel.getSnapshot().messages[0].text
  if (text().length < length) {
    await new Promise((resolve) => {
      const stop = channel.subscribe(() => text().length >= length && (stop(), resolve()))
    })
  }
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))
}

// Send the questions "q1", "q2" …, without a wait between them.
const askAtOnce = (count) => {
    const input = document.querySelector("tenuto-chat").shadowRoot.querySelector("textarea")
    for (let n = 1; n <= count; n++) {
        input.value = `q${n}`
        input.dispatchEvent(new InputEvent("input"))
        input.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", cancelable: true }))
    }
}

// Let another person enter the channel and type.
const enterAsBea = async () => {
  const { connect } = await import("/tenuto/web/client.js")
  window.other = connect({ url: "/tenuto", client: "u-17" }).channel("chat:1")
  await other.enter({ name: "Bea" })
  other.typing()
}

// Keep the message "keep", and change each other one.
const keepOrChange = () => chat.addEventListener("tenuto-send", (event) => {
  if (event.detail.parts[0].text === "keep") event.preventDefault()
  else event.detail.parts[0].text += "!"
})

// Add a tag with a token, and a launcher of the page.
const tagWithToken = token => {
  const chat = document.createElement("tenuto-chat")
  const attributes = { channel: "chat:1", token, identity: "zoe", launcher: "", open: "" }
  for (const [name, value] of Object.entries(attributes)) chat.setAttribute(name, value)
  chat.append(Object.assign(document.createElement("b"), { slot: "launcher", textContent: "Help" }))
  document.body.append(chat)
}
