"""Write the pages of the site that list each public name: those of Python from its docstrings, by griffe, and those of
the browser client from the types of its package, which `scripts/build_web` makes.

Layer: scripts. `docs.py` calls `python` and `browser`; both return Markdown, and the same text for the same sources.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import griffe
import public

ROOT = Path(__file__).parents[1]
PYTHON = """# Reference: Python

Each public name with its signature and its docstring. [Tenuto in Python](python.md) explains how to use them, and
[Stability](stability.md) what stays.
"""
TYPES = """## Types that these name

The objects that calls take and return, and names for types. Your code makes only objects that are shown with arguments.
"""
ENTRY = re.compile(r"^#+ `([\w.]+)`$", re.MULTILINE)
CODE = re.compile(r"^```.*?^```$|^#[^\n]+$|`(\w+\.[\w.]+)`", re.MULTILINE | re.DOTALL)
PARAMETER = re.compile(r", (?=\*|/|\w+: )")
COMMENT = re.compile(r"  # .+$")


def python() -> str:
    """Return the page of Python. `public.py` says which names are public."""
    parts, shown = [PYTHON], dict[str, str]()
    module = ""
    for one in public.names():
        found, heading = one.found, one.name
        if one.module != module:
            module, home = one.module, public.get(one.module)
            parts += [f"## `{module}`", docstring(home).partition("\n\n")[0]] if home else [TYPES]
        if f"### `{heading}`" in parts:  # a heading is there once
            heading = found.path if found is not None and module == public.TYPES else f"{module}.{heading}"
        if found is not None and found.path in shown:
            parts.append(f"### `{heading}`\n\nThe same as in `{shown[found.path]}`.")
        elif found is None:
            parts.append(f"### `{heading}`")
        else:
            shown[found.path] = module
            parts += entry(found, heading, "###", one.members)
    return linked("\n\n".join(filter(None, parts)) + "\n")


def linked(page: str) -> str:
    """Return a page whose texts link the names that have an entry, such as `Hub.create` or `tenuto.sources.pipe`."""
    entries = {name: name for name in ENTRY.findall(page)}
    entries |= {f"{module}.{name}": name for module in public.WHOLE for name in entries}

    def link(found: re.Match[str]) -> str:
        said = found[1] or ""
        name = entries.get(said) or entries.get(said[:1].upper() + said[1:])  # `hub.agent` is `Hub.agent`
        return f"[`{said}`](#{name.lower().replace('.', '')})" if name else found[0]

    return CODE.sub(link, page)


def docstring(found: griffe.Object) -> str:
    return found.docstring.value if found.docstring else ""


def entry(found: griffe.Object, name: str, level: str, members: dict[str, griffe.Object]) -> Iterator[str]:
    """Yield the heading, the signature and the docstring of a name, and those of the members of a class."""
    yield f"{level} `{name}`"
    if isinstance(found, griffe.Function):
        yield code("async def " if "async" in found.labels else "def ", found, found.name)
    elif isinstance(found, griffe.Attribute):
        yield f"```python\n{assignment(found)}\n```"
    init = members.get("__init__")
    if isinstance(init, griffe.Function) and "dataclass" not in init.labels:
        yield code("class ", init, found.name)
    yield docstring(found)
    fields = [assignment(one) for one in members.values() if isinstance(one, griffe.Attribute)]
    yield "```python\n" + "\n".join(fields) + "\n```" if fields else ""
    for key, one in members.items():
        if one.is_function and key != "__init__":
            yield from entry(one, f"{name}.{key}", level + "#", {})


def code(keyword: str, found: griffe.Function, name: str) -> str:
    """Return a signature as a block, with a line for each parameter if it is long."""
    text = keyword + found.signature(return_type=not keyword.startswith("class"), name=name)
    for default in (one.default for one in found.parameters if isinstance(one.default, griffe.ExprName)):
        constant = public.target(public.get(default.canonical_path))
        if isinstance(constant, griffe.Attribute) and str(constant.value)[:1].isdigit():
            text = text.replace(f"= {default}", f"= {constant.value}")
    if len(text) > 100:
        before, _, rest = text.partition("(")
        inside, _, after = rest.rpartition(")")
        text = f"{before}(\n    " + PARAMETER.sub(",\n    ", inside) + f",\n){after}"
    return f"```python\n{text}\n```"


def assignment(found: griffe.Attribute) -> str:
    """Return an attribute with its type and value, below its docstring or before the comment on its line."""
    of_type, is_default = (
        public.type_of(found),
        found.labels & {"class-attribute", "module-attribute"} and found.value is not None,
    )
    comment = COMMENT.search(found.lines[-1]) if found.lines and "property" not in found.labels else None
    said = "".join(f"# {line}".rstrip() + "\n" for line in docstring(found).splitlines())
    text = found.name + (f": {of_type}" if of_type else "")
    value = str(found.value).replace("HubCore", "Hub").replace("Writer.", "MessageWriter.")  # in `blocking(…)`
    return said + text + (f" = {value}" if is_default else "") + (comment[0] if comment else "")


# The browser client ----------------------------------------------------------------------------------------------


BROWSER = """# Reference: the browser client

The types of the npm package, which also describe the modules that a hub serves. [The browser client](browser.md) and
[the chat element](widget.md) explain how to use them.
"""
WEB = ROOT / "tenuto" / "web"
DECLARED = re.compile(r"(?:export )?(?:declare )?(?:function|class|type|interface|const) (\w+)")
EXPORTED = re.compile(
    r"^export (?:\{ (\w+) \}|(?:declare )?(?:function|class|type|interface|const) (\w+))", re.MULTILINE
)
IMPORTED = re.compile(r"^(?:import|export)(?: type)? \{ (.*) \} from \"[./\w]*?(\w+)\.js\"", re.MULTILINE)
TYPE = re.compile(r"import\(\"[./\w]*?(\w+)\.js\"\)\.(\w+)")
NAMED = re.compile(rf"{TYPE.pattern}|(?<![.\w\"])([A-Z]\w+)")
ALIAS = re.compile(rf"export type \w+(?:<.*>)? = {TYPE.pattern}(?:<.*>)?;")
UNION = re.compile(r"^type (\w+) = ((?:\"\w+\"(?: \| )?)+)$", re.MULTILINE)
BASE = re.compile(r"(^declare const (\w+): \{\n    new \(\): (.+);\n.+\n\};\n)", re.MULTILINE)
CONST = re.compile(r"(^export declare const (\w+): (\{\n(?:    .+\n)+\});\n)", re.MULTILINE)
OF_THE_PLATFORM = re.compile(r"#private|constructor|static |\w+Callback\(")
BRACES = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
TAG = re.compile(rf"@(param|template|returns|type)\b\s*(?:{BRACES})?\s*")
LONG, FOLDED = re.compile(r"/\*\*\n\s+\* ([^/]*?)\n\s+\*/"), re.compile(r"\s+\* ")
CALLED = re.compile(r"export declare (class|function) ")
Place = tuple[str, str]  # the module and the name of a declaration


def browser() -> str:
    """Return the page of the browser client. Raises CalledProcessError if its types cannot be made."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([ROOT / "scripts" / "build_web", folder], check=True)
        paths = sorted(Path(folder).rglob("*.d.ts"), key=lambda path: path.name)
        files = {path.name.removesuffix(".d.ts"): inlined(path.read_text()) for path in paths}
    known: dict[Place, tuple[str, str]] = {}  # the documentation and the code of each declaration
    imported: dict[Place, str] = {}
    for module, text in files.items():
        known |= {(module, name[1]): one for one in statements(text) if (name := DECLARED.match(one[1]))}
        imported |= {(module, name): of for names, of in IMPORTED.findall(text) for name in names.split(", ")}

    def origin(module: str, name: str) -> Place:
        """Return the place where a name of a module is declared."""
        if (module, name) not in known:
            return origin(imported[module, name], name)
        alias = ALIAS.fullmatch(known[module, name][1])
        return origin(alias[1], alias[2]) if alias else (module, name)

    def named(module: str, found: re.Match[str]) -> Place | None:
        """Return the place of a type that the code of a module names; None for one of the platform."""
        place = (found[1], found[2]) if found[1] else (module, found[3])
        return origin(*place) if place in known or place in imported else None

    headings = dict[Place, str]()  # the section of each declaration
    sections = dict[str, list[str]]()
    for path, entry in json.loads((WEB / "package.json").read_text())["exports"].items():
        module = entry["types"].removeprefix("./").removesuffix(".d.ts")
        head = (WEB / f"{module}.js").read_text().partition("/**")[2].partition("@module")[0]
        exported = [origin(module, one or other) for one, other in EXPORTED.findall(files[module])]
        tag = [("tag", name) for _, name in EXPORTED.findall(files["tag"])] if module == "element" else []
        heading = f"`tenuto{path[1:]}`\n\n" + prose(head).partition("\n\n")[0]
        sections[heading] = [f"## {heading}"]
        for place in exported + tag:
            headings.setdefault(place, heading)
    listed = list(headings)
    for place in listed:  # grows
        used = [named(place[0], found) for found in NAMED.finditer(known[place][1])]
        listed += [one for one in dict.fromkeys(used) if one and one not in listed]
    first = {name: module for module, name in reversed(listed)}
    for place in sorted(listed, key=lambda one: (not CALLED.match(known[one][1]), one[1].lower())):
        heading = headings.get(place, "Types that these name")

        def qualified(found: re.Match[str], of: str = place[0], heading: str = heading) -> str:
            place = named(of, found)
            if place is None or first[place[1]] == place[0] or f"/{place[0]}`" in heading:
                return place[1] if place else found[0]
            return f'import("tenuto/{place[0]}").{place[1]}'

        comment, code = known[place]
        parts = sections.setdefault(heading, [f"## {heading}"])
        parts += filter(None, declaration(place[1], comment, NAMED.sub(qualified, code)))
    return "\n\n".join([BROWSER, *(part for section in sections.values() for part in section)]) + "\n"


def inlined(text: str) -> str:
    """Return the types of a module, with the meaning of a name in place of names that it does not export."""
    for name, union in UNION.findall(text):
        text = re.sub(rf"\b{name}\b", union, re.sub(rf"^type {name} = .+\n", "", text, flags=re.MULTILINE))
    for whole, name, of_class in BASE.findall(text):
        text = text.replace(whole, "").replace(
            f" extends {name} ", f" extends {of_class.replace(' & ', ' implements ')} "
        )
    for whole, name, fields in CONST.findall(text):
        text = text.replace(f"typeof {name};", f"{fields};").replace(whole, "") if f"typeof {name};" in text else text
    return text


def statements(text: str) -> Iterator[tuple[str, str]]:
    """Yield each statement of a file, or member of a class, with the comment before it; tsc ends a line after each."""
    comment = code = ""
    is_comment = False
    for line in text.splitlines():
        is_comment = not code and (is_comment or line.startswith("/**"))
        if is_comment:
            comment = line if line.startswith("/**") else f"{comment}\n{line}"
            is_comment = "*/" not in line
            comment = "" if "@module" in comment and not is_comment else comment
        elif code or line:
            code += line + "\n"
            if line[:1].strip() and not line.endswith("{"):
                yield comment, code.rstrip()
                comment = code = ""


def declaration(name: str, comment: str, code: str) -> Iterator[str]:
    """Yield the heading, the code and the documentation of a name, and those of the methods of a class."""
    yield f"### `{name}`"
    code = re.sub(r"^(export )?(declare )?", "", code)
    head, _, inside = code.partition(" {\n")
    if not head.startswith("class "):
        short = LONG.sub(lambda comment: f"/** {FOLDED.sub(' ', comment[1])} */", code)
        yield f"```ts\n{short}\n```"
        yield prose(comment)
        return
    members = [one for one in statements(dedent(inside[:-1])) if not OF_THE_PLATFORM.match(one[1])]
    methods = {found[1]: one for one in members if (found := re.match(r"(\w+)(?:<.*?>)?\(", one[1]))}
    fields = [one for one in members if one not in methods.values()]
    about = [
        (
            " ".join(prose(before).removeprefix("- returns: ").replace("\n\n- returns: ", " Returns: ").split()),
            "\n    ".join(one.split("\n")),
        )
        for before, one in fields
    ]
    shown = "".join(f"    // {text}\n    {one}\n" if text else f"    {one}\n" for text, one in about)
    yield f"```ts\n{head} {{\n{shown}}}\n```"
    yield prose(comment)
    for method, (before, one) in methods.items():
        yield f"#### `{name}.{method}`"
        yield f"```ts\n{one}\n```"
        yield prose(before)


def prose(comment: str) -> str:
    """Return the text of a JSDoc comment, with a list of what it says about parameters and the result."""
    text = re.sub(r"^\s*(?:/\*\*|\*(?!/)) ?|\s*\*/$", "", comment, flags=re.MULTILINE).strip()
    main, *tags = TAG.split(text)
    lines = []
    for tag, rest in zip(tags[::2], tags[1::2], strict=True):
        said = " ".join(rest.split())
        if tag == "type":
            main += said
            continue
        name, said = (
            ("returns", said)
            if tag == "returns"
            else re.sub(r"^\[?(\w+)(?:=[^\]]*)?\]? ?", r"`\1`\n", said).split("\n")
        )
        lines += [f"- {name}: {said}"] if said else []
    return "\n\n".join(filter(None, [main.strip(), "\n".join(lines)]))
