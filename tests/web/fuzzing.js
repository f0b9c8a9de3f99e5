/**
 * Inputs that randomness from a seed changes: JSON by its structure, text by characters that break parsers.
 *
 * The same seed draws the same inputs, on every machine.
 */

export const IDS = ["m", "m1", "__proto__", "constructor", "toString", "hasOwnProperty", "length", "-:0", "x".repeat(64)]
export const TEXTS = ["", "a", "bc", "😀", "\ud83d", "\ude00", "e\u0301", "\u2028", "\0", "\r\n", "<b>", "x".repeat(3_000)]
const NUMBERS = [0, 1, -1, 2, 3, 7, 0.5, 2 ** 31, 2 ** 53, 2 ** 53 + 2, 1e308, -1e308]
const VALUES = [null, true, false, [], {}, [null], { length: 1e9 }, { toString: 1 }, { then: 1 }, { type: [] }, [[[[]]]]]

/** Return an arbitrary value. */
export function anything(random) {
  const kind = random.upTo(5)
  if (kind === 0) return random.of(IDS)
  if (kind === 1) return random.of(TEXTS)
  if (kind === 2) return random.of(NUMBERS)
  return structuredClone(random.of(VALUES))
}

/** Return a copy of `value` with one change; keys such as `__proto__` become own keys, as in parsed JSON. */
export function changed(random, value) {
  const root = [structuredClone(value)]
  const places = []
  const waiting = [root]
  while (waiting.length) {
    const holder = waiting.pop()
    for (const key of Object.keys(holder)) {
      places.push([holder, key])
      if (holder[key] && typeof holder[key] === "object") waiting.push(holder[key])
    }
  }
  const [holder, key] = random.of(places)
  const old = holder[key]
  const kind = random.upTo(6)
  if (kind === 0) delete holder[key]
  else if (kind === 1 && typeof old === "number") holder[key] = old + random.of([-1, 1, 2, 2 ** 32])
  else if (kind === 1 && typeof old === "string") holder[key] = old.slice(random.upTo(old.length + 1)) + random.of(TEXTS)
  else if (kind === 2 && Array.isArray(old)) old.splice(random.upTo(old.length + 1), random.upTo(2), anything(random))
  else if (kind === 3 && old && typeof old === "object" && !Array.isArray(old)) own(old, random.of([...IDS, "type", "serial", "id"]), anything(random))
  else if (kind === 4) holder[key] = random.chance(0.5) ? [old] : { x: old }
  else holder[key] = anything(random)
  return root[0] ?? null
}

/** Set a key of any name, without calling a setter. */
function own(object, key, value) {
  Object.defineProperty(object, key, { value, enumerable: true, configurable: true, writable: true })
}

/** Return `text` with a few characters changed. */
export function changedText(random, text) {
  const at = random.upTo(text.length + 1)
  const piece = random.of(["", ...TEXTS, "{", "}", "[", "]", '"', "\\", "\\ud800", "null", "1e999", ",", ":"])
  return text.slice(0, at) + piece + text.slice(at + random.upTo(4))
}

/** The first seed: always the same, unless `SEED` names another. */
export const SEED = Number(process.env.SEED ?? 0)

const MORE_MS = (Number(process.env.FUZZ_SECONDS ?? 0) * 1_000) / 7 // time for further inputs, for each of the tests

/** Yield `count` seeds (`FUZZ=10`: ten times as many, `FUZZ=0`: one), and further ones for a share of `FUZZ_SECONDS`. */
export function* seeds(count) {
  const planned = Math.max(1, Math.round(count * Number(process.env.FUZZ ?? 1)))
  let seed = SEED
  while (seed < SEED + planned) yield seed++
  for (const begun = performance.now(); performance.now() - begun < MORE_MS; ) yield seed++
}

const shapes = () => [Object.prototype, Array.prototype, Map.prototype, Function.prototype].map((one) => Reflect.ownKeys(one).length)
const SHAPES = JSON.stringify(shapes())

/** Return whether the shared prototypes are unchanged by the inputs. */
export const isUnpolluted = () => JSON.stringify(shapes()) === SHAPES
