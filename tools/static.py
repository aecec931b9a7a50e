"The rules for what a notebook stores: small, readable without a kernel, a script or a network. `python tools/static.py` lists what breaks them."
import json, re, sys
from pathlib import Path

LIMIT = 150_000                            # bytes of stored output in one notebook
WIDGET = "application/vnd.jupyter.widget-view+json"
ALLOWED = {"text/plain", "text/html", "text/markdown", "text/latex", "image/png", "image/jpeg", "image/svg+xml", "application/json", WIDGET}
LOADS = re.compile(r"""(?:\bsrc|\bsrcset|\bposter|<link[^>]*\bhref|\bxlink:href|<image[^>]*\bhref)\s*=\s*["']?\s*(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import""", re.I)
ACTIVE = re.compile(r"<\s*(?:script|iframe|object|embed|form)\b|\bon[a-z]{3,}\s*=\s*[\"']|javascript:", re.I)
FRAGILE = re.compile(r"<\s*(?:style|svg)\b", re.I)   # dropped in a notebook that is not trusted: a fresh clone


def text(value): return "".join(value) if isinstance(value, list) else value if isinstance(value, str) else json.dumps(value)


def broken(nb):
    "One sentence for each rule that a notebook (a dict) breaks."
    size = sum(len(json.dumps(c.get("outputs", [])).encode()) for c in nb["cells"])
    if size > LIMIT: yield f"{size:,} bytes of stored output; the limit is {LIMIT:,}"
    if "widgets" in nb.get("metadata", {}): yield "widget state in the metadata: strip it (tools/execute.py --in-place does)"
    for n, cell in enumerate(nb["cells"]):
        if re.search(r"^`?(<{7}|={7}|>{7})( |`|$)", text(cell.get("source", "")), re.M): yield f"cell {n}: the mark of a merge that was not finished"
        for o in cell.get("outputs", []):
            for problem in of_output(o): yield f"cell {n}: {problem}"
        for name in cell.get("attachments", {}): yield f"cell {n}: attachment {name}: save it under nbs/images/"


def of_output(o):
    "The rules for one output."
    if o["output_type"] == "error": yield f"a saved error: {o.get('ename')}"
    if o["output_type"] == "stream" and o.get("name") == "stderr": yield f"text on stderr: {text(o['text'])[:80]!r}"
    data = o.get("data", {})
    for mime in data.keys() - ALLOWED: yield f"output of type {mime}, which few can show"
    if WIDGET in data and not data.keys() & {"text/html", "image/png", "image/svg+xml", "text/markdown"}: yield "a widget without a static form"
    if data and "text/plain" not in data: yield "no text form"
    html = text(data.get("text/html", ""))
    for what, pattern in dict(script=ACTIVE, network=LOADS).items():
        for form in (html, text(data.get("image/svg+xml", "")), text(data.get("text/markdown", ""))):
            if m := pattern.search(form): yield f"{what} in stored HTML: {m[0]!r}"
    if m := FRAGILE.search(html): yield f"{m[0]!r} in stored HTML vanishes in an untrusted notebook: inline styles, <img src='data:image/svg+xml;base64,...'>"
    if re.search(r"/(?:home|Users|root|work|tmp)/\w", text(o.get("text", "")) + text(data.get("text/plain", "")) + html): yield "a path of somebody's machine"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from execute import ROOT, pages
    found = [f"{p.relative_to(ROOT)}: {problem}" for p in pages() for problem in broken(json.loads(p.read_text(encoding="utf-8")))]
    print(*found, sep="\n")
    sys.exit(bool(found))
