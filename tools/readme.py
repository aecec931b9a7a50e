"""README.md from nbs/index.ipynb, without Quarto: `python tools/readme.py`, or `--check` to only tell whether it is in step.

Prose stays prose, code cells become fenced code, what they showed becomes text below. Pictures are written as Markdown
links in the notebook; their paths, like all relative links, are rewritten from nbs/ to the top of the repository.
"""
import argparse, re, sys
from pathlib import Path
from posixpath import normpath

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made from nbs/index.ipynb by tools/readme.py (make export). Edit the notebook. -->"
LINK = re.compile(r"(\]\(\s*<?|\b(?:src|href)=[\"'])([^)\"'>\s]+)")


def relink(text, folder="nbs"):
    "Rewrite relative links for a page that moves from `folder` to the top."
    def one(m):
        url, tail = re.match(r"([^#?]*)(.*)", m[2]).groups()
        if not url or re.match(r"[a-z][a-z0-9+.-]*:|/", url, re.I): return m[0]
        return m[1] + normpath(f"{folder}/{url}") + ("/" if url.endswith("/") else "") + tail
    parts = re.split(r"(^```.*?^```[^\n]*$)", text, flags=re.M | re.S)          # not inside fenced code
    return "".join(p if i % 2 else LINK.sub(one, p) for i, p in enumerate(parts))


def fence(text, lang=""):
    "A code block that its own text cannot close."
    ticks = "`" * max([3, *(len(t) + 1 for t in re.findall(r"^`{3,}", text, re.M))])
    return f"{ticks}{lang}\n{text.rstrip()}\n{ticks}"


def output(o):
    "One stored output as Markdown: text, or nothing where only HTML or a picture was stored."
    if o.output_type == "stream": return fence(o.text) if o.name == "stdout" and o.text.strip() else ""
    data = o.get("data", {})
    if "text/markdown" in data: return data["text/markdown"]
    if any(m.startswith("image/") for m in data): raise ValueError("index.ipynb stores a picture as a cell's output: save it under nbs/images/ and link it in a Markdown cell.")
    return fence(data["text/plain"]) if data.get("text/plain", "").strip() else ""


def front_matter(text):
    "A YAML block at the start as a title and a line below it."
    m = re.match(r"---\n(.*?)\n---\n?", text, re.S)
    if not m: return text
    keys = dict(re.findall(r"^(title|description): *[\"']?(.*?)[\"']?$", m[1], re.M))
    return "\n\n".join([f"# {keys['title']}"] * ("title" in keys) + [f"> {keys['description']}"] * ("description" in keys) + [text[m.end():]])


def cell_text(cell):
    "One cell as Markdown."
    if cell.cell_type != "code": return relink(front_matter(cell.source))
    directives = dict((re.findall(r"^#\|\s*(\w+):?\s*(\S*)", cell.source, re.M)))
    if {"hide", "default_exp", "export"} & directives.keys() or directives.get("include") == "false": return ""
    code = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
    shown = [] if directives.get("output") == "false" else [output(o) for o in cell.get("outputs", [])]
    return "\n\n".join(filter(None, [fence(code, "python") if code and directives.get("echo") != "false" else "", *shown]))


def readme(nb):
    "The text of README.md for a notebook."
    cells = [cell_text(c) for c in nb.cells]
    return "\n\n".join([NOTE, *(c.strip() for c in cells if c.strip())]) + "\n"


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--check", action="store_true", help="write nothing; exit 1 if README.md is not in step")
    a = p.parse_args()
    new, path = readme(nbformat.read(ROOT/"nbs/index.ipynb", 4)), ROOT/"README.md"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if a.check: sys.exit(0 if new == old else "README.md is not in step with nbs/index.ipynb: run `make export`.")
    if new != old: path.write_text(new, encoding="utf-8")
