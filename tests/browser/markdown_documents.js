/** Markdown for tests: random documents of a seed, and long blocks of each kind. */
import { randomOf } from "../web/random.js"

const WORDS = (
  "the cursor server answer token `code` **bold** *em* ~~no~~ [link](https://a.example/x) foo_bar_baz 12 **a `b` c** wörld 漢字 " +
  "مرحبا a*b [ref] <b>x</b> &amp; &copy; \\* ![i](http://e.example/i.png) 1. - # | <https://x.example> " +
  "https://x.example/a_b?c=(d)&e; **https://y.example** (https://z.example/_f)). [https://v.example"
).split(" ")

/** Return a document of at most `most` blocks, which often has the words `more`. @param {number} seed @param {number} most @param {string[]} more */
export function randomDocument(seed, most, more = []) {
  const { upTo, chance, of } = randomOf(seed)
  const all = [...WORDS, ...more, ...more, ...more]
  const times = (count, make) => Array.from({ length: count }, (_, n) => make(n))
  const words = (count) => times(1 + upTo(count), () => of(all)).join(" ")
  const paragraph = () => times(1 + upTo(3), () => words(8)).join("\n")
  const list = (depth = 0, indent = "") => {
    const [isOrdered, isLoose] = [chance(0.4), chance(0.3)]
    const lines = times(1 + upTo(5), (n) => {
      const mark = isOrdered ? `${n + 1}. ` : "- "
      const inner = indent + " ".repeat(mark.length)
      const item = [indent + mark + (chance(0.2) ? "[ ] " : "") + words(6)]
      if (depth < 2 && chance(0.3)) item.push(list(depth + 1, inner))
      if (chance(0.15)) item.push(...["```py", "x = 1", "```"].map((line) => inner + line))
      if (chance(0.15)) item.push("\n" + inner + words(4))
      return item.concat(isLoose ? [""] : []).join("\n")
    })
    return lines.join("\n")
  }
  const table = () => {
    const columns = 1 + upTo(4)
    const row = () => `| ${times(columns, () => words(2).replaceAll("|", "")).join(" | ")} |`
    return [row(), "|" + " --- |".repeat(columns), ...times(upTo(6), row)].join("\n")
  }
  const fence = () => {
    const mark = of(["```", "~~~", "````"])
    return [mark + of(["py", "", "js"]), ...times(upTo(6), () => of(["a = 1", "", "  b", "``", "# x", "- y"])), mark].join("\n")
  }
  const blocks = [
    paragraph, paragraph, paragraph, list, list, table, fence, () => `${"#".repeat(1 + upTo(6))} ${words(4)}`, () => "---",
    () => `${words(3)}\n===`, () => `> ${words(5)}\n> ${words(3)}`, () => `    code ${words(2)}`,
    () => `[ref]: https://r.example/${upTo(9)}`, () => "***",
  ]
  return times(1 + upTo(most), () => of(blocks)()).join(of(["\n\n", "\n\n", "\n"])) + of(["", "\n"])
}

/** Return text that takes careless parsers long, of about `length` characters each, by name. @param {number} length */
export function hostileShapes(length) {
  const repeated = {
    "quotes": "> ", "lists": "- ", "numbers": "1. ", "quotes and lists": "> - ", "stars and underscores": "*a_", "stars": "*",
    "open strong": "**a ", "open marks": "~~a *b __c ", "closed marks": "*a **b~~ ", "backticks": "`", "open brackets": "[", "images": "![",
    "closed brackets": "]", "links": "[a](", "link ends": "](x", "nested links": "[a](b ", "angles": "<", "entities": "&", "numbered entities": "&#1",
    "backslashes": "\\", "formulas": "\\(", "dollars": "$a", "double dollars": "$$", "formula blocks": "\\[\n", "dollar lines": "$$\n", "fences": "~~~\n",
    "backtick fences": "```\n", "headings": "# ", "rules": "***\n", "underlines": "a\n=\n", "definitions": "[x]: y\n", "open definitions": "[x", "addresses": "<a@",
    "schemes": "<http://", "bare schemes": "http://", "bare addresses": "https://a.b*", "bare paths": "https://a.b/", "ends of addresses": "http://a/;)", "spaces": " ", "tabs": "\t", "line feeds": "\n", "returns": "\r", "letters": "a", "han": "漢", "emoji": "👩‍👩‍👧", "combining": "a\u0301\u0323",
    "overrides": "\u202e\u2066", "zeroes": "\0", "pipes": "|", "rows": "|a", "quoted lines": "> a\n", "one item": "  a\n\n", "tasks": "- [x] ", "surrogates": "\ud83d",
  }
  const texts = Object.fromEntries(Object.entries(repeated).map(([name, one]) => [name, one.repeat(length / one.length)]))
  const row = (cell) => `|${` ${cell} |`.repeat(200)}\n`
  return {
    ...texts,
    "200 columns": (row("a") + row("-") + row("b").repeat(length / 800)).slice(0, length),
    "runs of backticks": Array.from({ length: Math.sqrt(length * 2) }, (_, n) => "`".repeat(n)).join("a"),
    "one item": `- ${texts["one item"]}`,
    "a line in a quote": `> ${texts.letters}`,
    "a line in an item": `- ${texts["stars and underscores"]}`,
    "a heading": `# ${texts["open marks"]}`,
    "definitions with names": Array.from({ length: length / 12 }, (_, n) => `[x${n}]: y${n}\n`).join(""),
    "a wide fence": `\`\`\`js\n${texts.letters}\n\`\`\`\n`,
    "a full fence": `\`\`\`js\n${"let a = `b${c}` // d\n".repeat(19_000 / 21)}\`\`\`\n`,
  }
}

/** Return blocks of about `length` characters by name. @param {number} length */
export function longBlocks(length) {
  const { of } = randomOf(7)
  const some = ["the", "cursor", "`code`", "**bold**", "*em*", "[l](https://a.example/b)", "server", "foo_bar"]
  const words = (count) => Array.from({ length: count }, () => of(some)).join(" ")
  const lines = (make, share = 1) => {
    const all = []
    for (let size = 0, n = 0; size < length * share; n++) size += all[all.push(make(n)) - 1].length + 1
    return all.join("\n")
  }
  return {
    "a tight list": lines(() => `- ${words(8)}`),
    "a loose list": lines(() => `- ${words(8)}\n`),
    "a list that becomes loose": `${lines(() => `- ${words(8)}`, 0.6)}\n\n${lines(() => `- ${words(8)}`, 0.4)}`,
    "a nested list": lines(() => `1. ${words(6)}\n   - ${words(5)}\n     - x\n   - y\n\n     z\n`),
    "lists of two kinds": `para\n\n${lines((n) => `${n + 5}. ${words(7)}`)}\n\nafter\n\n* other\n* list`,
    "a list with fences": lines((n) => `- ${words(5)}\n\n  \`\`\`js\n  let x = ${n}\n  \`\`\``),
    "a list before a rule": `${lines(() => `* ${words(6)}`)}\n* * *\nx`,
    "an item with a lazy line": `${lines(() => `- ${words(6)}`)}\nlazy line\n\npara`,
    "items with lazy lines that begin with a number": lines((n) => `${n + 1}. ${words(6)}\n2.5 ${words(2)}`),
    "items at four columns": lines((n) => `${" ".repeat(n % 4)}- ${words(6)}`),
    "lines that end by carriage returns": lines(() => `- ${words(6)}\r`),
    "a table": `| a | b |\n|---|:-:|\n${lines(() => `| ${words(4)} | ${words(3)} |`)}\n\nend`,
    "a table before other blocks": `| a | b |\n|---|---|\n${lines(() => `| ${words(4)} | x |`)}\nlast row\n\n# x`,
    "a fence": `\`\`\`py\n${lines((n) => `  x = ${n}`)}\n\`\`\`\n\nend`,
    "a fence without an end": `~~~\n${lines((n) => `y${n}`)}`,
    "a paragraph": words(length / 8),
    "a paragraph of lines": `${lines(() => words(7))}\n- list\n- two`,
    "a paragraph without spaces": `${"漢".repeat(length)}\n\nend`,
    "a paragraph that is one bare address": `https://a.example/${"b".repeat(length)}\n\nend`,
    "a paragraph of marks": lines(() => "a - b 1. c # d > e"),
    "a paragraph of sentences": words(length / 8).replaceAll(" the ", " the 2 * 3, a_b and \\* of [it](https://a.example/c d) **some bold words** `two` _em_ ~~no more~~ "),
    "a paragraph with a mark that is never closed": `${words(length / 20)} **open ${words(length / 40)}`,
    "a paragraph with a mark that is closed late": `${words(length / 30)} **open ${words(length / 30)} closed** ${words(length / 30)}`,
    "a paragraph with an underline": `${words(length / 10)}\n===\n\nend`,
    "a paragraph of lines with an underline": `${lines(() => words(7))}\n---\nend`,
    "a paragraph before a table": `${lines(() => words(7))}\n| a | b |\n|---|---|\n| 1 | 2 |\n\nend`,
    "a paragraph with bars before a delimiter row": `| ${words(length / 20)} | b |\n|---|---|\n| 1 | 2 |\n\nend`,
    "a paragraph with definitions": `[foo]: https://f.example/\n\n\n   ${words(length / 10)} [foo]: https://g.example/ [foo] ${words(length / 20)} [foo]\n[foo]: x`,
    "a paragraph that begins with a link": `[a](https://a.example/) ${words(length / 8)}`,
    "a paragraph that begins like a rule in a list": `- a\n${"-".repeat(length)}b\n\nend`,
    "a paragraph that begins like a rule behind a quote": `> a\n${"_".repeat(length)}b\n\nend`,
    "a paragraph that begins like a fence": `a\n\`\`\`\`${words(length / 8).replaceAll("`", "")}b\`c\`\n\nend`,
    "a paragraph that is the title of a definition": `[foo]: /url\n"${words(length / 8)}"\n\nend [foo]`,
    "a definition at the end": `see [foo]\n\n${lines((n) => `para ${n} [foo]\n`)}\n[foo]: https://f.example/\n\nend [foo]`,
  }
}
