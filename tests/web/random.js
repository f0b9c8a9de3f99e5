/** Randomness from a seed, for the tests in Node and in a page. */

/** Return random functions of a seed, the same on every machine. */
export function randomOf(seed) {
  let state = Math.imul(seed + 1, 0x9e3779b9)
  const random = () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
  return {
    upTo: (limit) => Math.floor(random() * limit),
    chance: (share) => random() < share,
    of: (list) => list[Math.floor(random() * list.length)],
  }
}
