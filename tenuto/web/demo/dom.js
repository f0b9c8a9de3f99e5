/** DOM, storage and requests of the demo's pages. @module */

/** Return an element of the page, typed loosely: the HTML has every id that these modules use. @param {string} id @returns {any} */
export const at = (id) => document.getElementById(id)

/** Return a new element. @param {string} name @param {Record<string, unknown>} [properties] @param {...(Node | string)} children @returns {any} */
export function make(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties)
  node.append(...children)
  return node
}

/** Set the text of `node` if it differs. @param {Node} node @param {string} text */
export const say = (node, text) => void (node.textContent === text || (node.textContent = text))

/** Replace the children of `node` if `key` differs from the last time. @param {HTMLElement} node @param {string} key @param {() => (Node | string)[]} children */
export function fill(node, key, children) {
  if (node.dataset.key === key) return
  node.dataset.key = key
  node.replaceChildren(...children())
}

/** Return the number of characters (code points). @param {string} text */
export const size = (text) => [...text].length

/** @param {number} count @param {string} [one] @returns {string} "1 character", "2,060 characters" */
export const counted = (count, one = "character", many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`

/** Return the kept value of `key`, else `initial`. @template T @param {Pick<Storage, "getItem">} storage @param {string} key @param {T} initial @returns {T} */
export function recall(storage, key, initial) {
  try {
    return JSON.parse(storage.getItem(`tenuto-demo.${key}`) ?? "null") ?? initial
  } catch {
    return initial
  }
}

/** @param {Pick<Storage, "setItem">} storage @param {string} key @param {unknown} value */
export const keep = (storage, key, value) => storage.setItem(`tenuto-demo.${key}`, JSON.stringify(value))

/** Send a POST and return its JSON. Throws an error with the server's `detail`. @param {string} path @param {object} body */
export async function post(path, body) {
  const response = await fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) })
  const data = await response.json().catch(() => ({ detail: `${path} failed with status ${response.status}` }))
  if (!response.ok) throw new Error(data.detail)
  return data
}
