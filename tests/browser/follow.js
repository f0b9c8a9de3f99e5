// Functions with which tests of the client follow a channel in a page, and look at what the page keeps.

// Connect as an app does. The page keeps each snapshot and each text that it was shown, and its warnings.
const follow = async ([options, name = "chat:1", module = "/tenuto/web/client.js"]) => {
  const { connect } = await import(module)
  const { warn } = console
  window.warnings = []
  console.warn = (text) => { warnings.push(text); warn(text) }
  window.snapshots = []
  window.shown = []
  window.client = connect({ url: "/tenuto", ...options })
  window.channel = client.channel(name)
  window.text = (id) => channel.getSnapshot().messages.find((one) => one.id === id)?.text ?? ""
  channel.subscribe(() => {
    const { messages, isFromCache, state } = channel.getSnapshot()
    const text = messages.map(({ text }) => text).join("|")
    snapshots.push({ text, isFromCache, state, of: messages.map(({ id, text }) => [id, text]) })
    if (text !== shown.at(-1)) shown.push(text)
  })
}

// Return all that the browser keeps for the page.
const stored = async () => {
  const found = []
  for (const { name } of await indexedDB.databases()) {
    const database = await new Promise((resolve) => {
      const opening = indexedDB.open(name)
      opening.onsuccess = () => resolve(opening.result)
    })
    for (const store of database.objectStoreNames) {
      const all = database.transaction(store).objectStore(store).getAll()
      await new Promise((resolve) => (all.onsuccess = resolve))
      for (const one of all.result) found.push(one.identity, new TextDecoder().decode(one.data))
    }
    database.close()
  }
  return JSON.stringify([found, { ...localStorage }, { ...sessionStorage }])
}

// Notes by how much the latest tick of the page's timers was late, and when the page has begun to lead.
const noteDelays = () => {
  let last = performance.now()
  window.lateMs = 0
  setInterval(() => {
    const now = performance.now()
    window.lateMs = Math.max(window.lateMs, now - last - 50)
    last = now
  }, 50)
  client.subscribe(() => { if (client.status.transport !== "tab") window.ledAt ??= Date.now() })
}

// Break the storage of the page: each fault by its name.
const breakStorage = (fault) => faults[fault]()
const faults = {
  "newer version": () => new Promise((resolve) => {
    const opening = indexedDB.open("tenuto:" + location.origin + "/tenuto", 9)
    opening.onsuccess = () => resolve(opening.result.close())
  }),
  damaged: () => new Promise((resolve) => {
    const opening = indexedDB.open("tenuto:" + location.origin + "/tenuto", 1)
    opening.onsuccess = () => {
      const change = opening.result.transaction("views", "readwrite")
      const data = new TextEncoder().encode("{")
      change.objectStore("views").put({ identity: "ada", channel: "chat:1", at: 1, bytes: 1, data })
      change.oncomplete = () => resolve(opening.result.close())
    }
  }),
  denied: () => { Object.defineProperty(window, 'indexedDB', { get() { throw new Error('denied') } }) },
  silent: () => { indexedDB.open = () => ({}) },
  full: () => {
    IDBObjectStore.prototype.put = () => { throw new DOMException("full", "QuotaExceededError") }
  },
}

// All that a page receives from other pages, for the test that two people share a browser.
const listen = () => {
  window.received = []
  const { set } = Object.getOwnPropertyDescriptor(BroadcastChannel.prototype, "onmessage")
  Object.defineProperty(BroadcastChannel.prototype, "onmessage", {
    set(handler) {
      set.call(this, (event) => {
        window.received.push(JSON.stringify(event.data))
        handler(event)
      })
    },
  })
}
