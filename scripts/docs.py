"""Build the site of the documentation, without a network: `make docs`, or `python scripts/docs.py [FOLDER]`.

Layer: scripts. Zensical makes the pages from `docs/`, in the order of its index, and two more from the code, by
`reference.py`. This script gives it plain Markdown, whose links outside of `docs/` lead to the repository, and adds
files for machines: each page as `.md`, `llms.txt`, `llms-full.txt`, and the skill of the packages below
`.well-known/agent-skills`. `make docs` first installs what it needs. The site fetches nothing from elsewhere. Two
environment variables set addresses:

- TENUTO_REPOSITORY: of the repository, such as https://github.com/owner/tenuto. Without it, links to its files are
  plain text.
- TENUTO_SITE: of the site, such as https://example.org/docs/. Without it there is no `sitemap.xml`, and the links of
  `404.html` work only at the root of a host.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import reference

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SKILL = ROOT / "tenuto" / ".agents" / "skills" / "tenuto"
WELL_KNOWN = ".well-known/agent-skills"  # of the Agent Skills Discovery RFC, version 0.2.0
SCHEMA = "https://schemas.agentskills.io/discovery/0.2.0/schema.json"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?://|#)([^)#\s]+)(#[^)\s]*)?\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^## (.+)$|^\*\*(Learn):\*\*|\]\(([\w/-]+\.md)\)", re.MULTILINE)

CONFIGURATION = """
[project]
site_name = "Tenuto"
site_description = "A durable realtime transport for AI conversations, in Python"
docs_dir = "pages"
site_dir = "site"
use_directory_urls = false
extra_css = ["extra.css"]
extra_javascript = ["extra.js"]
{address}nav = {nav}

[project.theme]
language = "en"
font = false
features = ["content.code.copy", "navigation.sections", "navigation.top", "navigation.tracking", "search.highlight"]

[[project.theme.palette]]
media = "(prefers-color-scheme: light)"
scheme = "default"
toggle.icon = "lucide/sun"
toggle.name = "Dark mode"

[[project.theme.palette]]
media = "(prefers-color-scheme: dark)"
scheme = "slate"
toggle.icon = "lucide/moon"
toggle.name = "Light mode"

[project.markdown_extensions]
attr_list = {{}}
tables = {{}}
toc.permalink = true
toc.slugify = {{ object = "pymdownx.slugs.slugify", kwds = {{ case = "lower" }} }}
pymdownx.highlight.pygments_lang_class = true
pymdownx.superfences = {{}}
"""

# What axe finds in the theme: the contrast of the shown page in the navigation, and regions without names. A name in a
# table is never broken: its table scrolls.
STYLE = """
.md-nav__link--active { color: var(--md-default-fg-color) !important }
.md-typeset td code, .md-typeset th code { word-break: normal; overflow-wrap: break-word }
"""
SCRIPT = """
new MutationObserver(() => {
  document.querySelectorAll(".md-code__nav").forEach((one, index) => (one.ariaLabel ??= `code ${index + 1}`))
  document.querySelectorAll(".md-typeset__scrollwrap, pre code").forEach((one) => (one.tabIndex = 0))
}).observe(document.documentElement, { childList: true, subtree: true })
"""
CALL = re.compile(r"^### `([\w.]+)\(.*\)`$", re.MULTILINE)
REFERENCE = {"reference-python.md": reference.python, "reference-browser.md": reference.browser}
# the row that the index gets for them; the table of pages to look things up is its last
ROW_OF_REFERENCE = "| {}, {} | each public name, from the docstrings and the types |\n".format(
    *(f"[{text}]({page})" for text, page in zip(("Each name in Python", "in the browser"), REFERENCE, strict=True))
)
LABEL = ' { data-toc-label="%s" }'  # in the navigation, a call is its name
EMPTY_HEADER = re.compile(r"^\|(.*\|)\n(?=\|---)", re.MULTILINE)


def build(folder: Path, repository: str, address: str) -> None:
    """Build the site into `folder`/site, in place of an earlier one. Raises CalledProcessError if Zensical fails."""
    if address and not re.fullmatch(r"https?://[^/\s\"?#]+(/[^\s\"?#]*)?", address):
        raise ValueError(
            f"TENUTO_SITE must be the address of the site, like https://example.org/docs/, got {address!r}"
        )
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / "pages"
    for path in sorted([*DOCS.glob("*.md"), *(DOCS / "decisions").glob("*.md")]):
        target = pages / page_name(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = EMPTY_HEADER.sub(named, linked(path, repository))
        target.write_text(CALL.sub(lambda call: call[0] + LABEL % call[1], text))
    for name, page in REFERENCE.items():
        (pages / name).write_text(page())
    for picture in [*DOCS.glob("*.svg"), *DOCS.glob("*.png")]:
        shutil.copy(picture, pages)
    (pages / "extra.css").write_text(STYLE)
    (pages / "extra.js").write_text(SCRIPT)
    (folder / "zensical.toml").write_text(
        CONFIGURATION.format(
            address=f'site_url = "{address.rstrip("/")}/"\n' if address else "", nav=toml(navigation())
        )
    )
    subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=folder, check=True)
    shutil.rmtree(folder / ".cache")  # it differs from build to build
    if not address:
        (folder / "site" / "sitemap.xml").unlink()  # it is empty
    for page in pages.rglob("*.md"):
        page.write_text(re.sub(LABEL % ".*", "", page.read_text()))
        shutil.copy(page, folder / "site" / page.relative_to(pages))
    write_for_machines(pages, folder / "site")
    write_skill(folder / "site" / WELL_KNOWN)


def named(header: re.Match[str]) -> str:
    """Return the header of a table, with words for a screen reader in place of its empty cells."""
    cells = [cell.strip() for cell in header[1].split("|")[:-1]]
    words = [cell or ("meaning" if index else "what") for index, cell in enumerate(cells)]
    return f"| {' | '.join(words)} |\n"


def page_name(path: Path) -> str:
    """Return the name of a page of the site: the index of a folder is `index.md`."""
    return path.relative_to(DOCS).as_posix().replace("README.md", "index.md")


def linked(path: Path, repository: str) -> str:
    """Return the text of a page, with links that work on the site."""

    def link(found: re.Match[str]) -> str:
        picture, text, target, anchor = found[1], found[2], found[3], found[4] or ""
        file = (path.parent / target).resolve()
        if file.is_relative_to(DOCS):
            return f"{picture}[{text}]({target.replace('README.md', 'index.md')}{anchor})"
        if not repository:
            return text
        return f"{picture}[{text}]({repository}/blob/main/{file.relative_to(ROOT).as_posix()}{anchor})"

    whole, parts, end = index() if path == DOCS / "README.md" else path.read_text(), [], 0
    for block in FENCED.finditer(whole):
        parts += [LINK.sub(link, whole[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(link, whole[end:])])


def index() -> str:
    """Return the index of `docs/`, with the pages that are only on the site."""
    return (DOCS / "README.md").read_text() + ROW_OF_REFERENCE


def navigation() -> dict[str, list[str]]:
    """Return the pages of each section of the index, in its order."""
    sections: dict[str, list[str]] = {}
    for heading, learn, page in ROW.findall(index()):
        if heading or learn:
            sections[heading or learn] = []
        else:
            list(sections.values())[-1].append(page.replace("README.md", "index.md"))
    return sections


def title(page: Path) -> str:
    """Return the heading of a page."""
    return page.read_text().splitlines()[0].removeprefix("# ").replace("`", "")


def toml(sections: dict[str, list[str]]) -> str:
    """Return the navigation as TOML; a title has no quotes."""
    lines = [f'  {{ "{name}" = {json.dumps(pages)} }},' for name, pages in sections.items()]
    return "\n".join(["[", '  { "Tenuto" = "index.md" },', *lines, "]"])


def write_for_machines(pages: Path, site: Path) -> None:
    """Write `llms.txt`, which names each page, and `llms-full.txt`: all but the decisions and the reference."""
    lines = [
        "# Tenuto",
        "",
        "> A durable realtime transport for AI conversations, in Python: refresh costs nothing.",
        "",
    ]
    texts = []
    for name, listed in navigation().items():
        lines += [f"## {name}", "", *(f"- [{title(pages / page)}]({page})" for page in listed), ""]
        texts += [(pages / page).read_text() for page in listed if "/" not in page and page not in REFERENCE]
    lines += ["## Skill", "", f"- [Add Tenuto to an app, for coding agents]({WELL_KNOWN}/{SKILL.name}/SKILL.md)", ""]
    (site / "llms.txt").write_text("\n".join(lines))
    (site / "llms-full.txt").write_text("\n\n".join(texts))


def write_skill(folder: Path) -> None:
    """Write the skill as pages and as an archive, and the index by which installers find it."""
    folder.mkdir(parents=True)
    archive = folder / f"{SKILL.name}.zip"
    with ZipFile(archive, "w") as zipped:
        for path in sorted(SKILL.rglob("*.md")):
            name = path.relative_to(SKILL).as_posix()
            zipped.writestr(ZipInfo(name), path.read_bytes())  # of 1980, and so the same in each build
            page = folder / SKILL.name / name
            page.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, page)
    head = (SKILL / "SKILL.md").read_text().split("---\n")[1]
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    entry = {**fields, "type": "archive", "url": archive.name, "digest": f"sha256:{digest}"}
    (folder / "index.json").write_text(json.dumps({"$schema": SCHEMA, "skills": [entry]}, indent=2) + "\n")


if __name__ == "__main__":
    build(
        Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs").resolve(),
        os.environ.get("TENUTO_REPOSITORY", ""),
        os.environ.get("TENUTO_SITE", ""),
    )
