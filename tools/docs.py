"""The documentation site: nbs/ -> _docs/, with no Quarto and no network.

    python tools/docs.py [--out _docs] [--only 'text/*.ipynb' ...] [--keep]

1. Copy the notebooks to build/site, without the numbers in front of their names (links are rewritten), and keep
   the code of exported cells on their page.
2. nbdev processes them: one section a symbol, with signature and parameter table (tools/showdoc.py), and links between pages.
3. smalldocs lays the site out as nbs/_quarto.yml says.
4. Formulas are drawn by a copy of KaTeX (from npm, kept in the virtual environment; without npm they stay readable TeX).
5. Check: no broken link or anchor, nothing loaded from outside. Any of these fails the build.
"""
import argparse, ast, html, json, os, re, shutil, subprocess, sys, tarfile
from fnmatch import fnmatch
from pathlib import Path
from posixpath import normpath

import yaml

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"^\d+[a-z]?_")
KATEX = "0.16.11"                                            # the version that smalldocs writes into its pages
CDN = f"https://cdn.jsdelivr.net/npm/katex@{KATEX}/dist"
SKIP = ("_*", ".*")


class DocsError(Exception):
    "The site cannot be built, or is broken; the message lists what to repair."


# 1. A copy of the notebooks

def plain(path):
    "A path without the numbers that order its files: text/00_bpe.ipynb -> text/bpe.ipynb."
    return "/".join(NUMBER.sub("", part) for part in str(path).split("/"))


def pages(nbs, only=()):
    "The notebooks of the site, in the order of their numbers, relative to nbs/."
    found = sorted(p.relative_to(nbs) for p in nbs.rglob("*.ipynb"))
    return [p for p in found if not any(fnmatch(part, s) for part in p.parts for s in SKIP) and (not only or any(fnmatch(str(p), o) for o in only))]


def retarget(source):
    "Rewrite links to numbered notebooks in prose."
    return re.sub(r"(\]\()([^)\s:]+\.ipynb)", lambda m: m[1] + plain(m[2]), source)


def staged(nb):
    "A notebook as the site needs it: below what nbdev says of an exported cell stands its code."
    cells = []
    for cell in split_title(nb["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown": source = retarget(source)
        elif not re.search(r"^#\|\s*(export|default_exp)", source, re.M): source = f"#| eval: false\n{source}"   # show_doc needs exported cells only
        cells.append({**cell, "source": source})
        if cell["cell_type"] == "code" and (code := shown_code(source)): cells.append({**cell, "id": f"{cell.get('id', '')}-src"[:64], "source": code, "outputs": []})
    return {**nb, "cells": cells}


def split_title(cells):
    "nbdev makes front matter of the title's cell and drops the rest of it: what follows title and description becomes a cell of its own."
    first = cells[0] if cells else dict(cell_type="", source="")
    m = re.match(r"# [^\n]*\n*(?:> [^\n]*\n?)*", "".join(first["source"]))
    if first["cell_type"] != "markdown" or not m: return cells
    rest = "".join(first["source"])[m.end():].strip()
    return [{**first, "source": m[0].strip()}, *([{**first, "id": "intro", "source": rest}] if rest else []), *cells[1:]]


def shown_code(source):
    "The code of an exported cell as a cell to read: folded under the public symbol it defines, plain where it is a private step; nothing for imports."
    if not re.search(r"^#\|\s*export\s*$", source, re.M): return ""
    code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
    kinds = [type(n).__name__ for n in ast.parse(code).body]
    if all(k in ("Import", "ImportFrom") for k in kinds): return ""
    public = re.search(r"^(?:def|class|async def) [A-Za-z]", code, re.M)
    fold = '#| code-fold: true\n#| code-summary: "Source"\n' if public else ""
    return f"#| eval: false\n{fold}{code}"


def sidebar(entries, names):
    "Write out `auto:` globs as lists of pages, and leave out what is not there."
    out = []
    for e in entries:
        if "auto" in e: out += [plain(n) for n in names if fnmatch(n, e["auto"]) and n.count("/") == e["auto"].count("/")]
        elif "contents" in e:
            below = sidebar(e["contents"], names)
            if below: out.append({**e, "contents": below})
        elif e.get("href") in names: out.append({**e, "href": plain(e["href"])})
    return out


def configuration(project):
    "What nbdev needs of a pyproject.toml, which it reads twice for each cell: the name, and its own table with our renderer."
    name, table = re.search(r"^name = .*\n", project, re.M)[0], re.search(r"^\[tool\.nbdev\]\n((?:(?!\[).*\n)*)", project, re.M)[1]
    return f'[project]\n{name}\n[tool.nbdev]\nrenderer = "tools.showdoc.ParameterTables"\n{table}'


def stage(nbs, site, only=()):
    "Copy notebooks, pictures and configuration to `site`/nbs."
    found = pages(nbs, only)
    twice = [str(p) for p in found if sum(plain(p) == plain(q) for q in found) > 1]
    if twice: raise DocsError("these notebooks would become the same page: " + ", ".join(twice))
    shutil.rmtree(site, ignore_errors=True)
    for p in found:
        to = site/"nbs"/plain(p)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps(staged(json.loads((nbs/p).read_text(encoding="utf-8")))), encoding="utf-8")
    for p in nbs.rglob("*"):
        if p.is_file() and p.suffix in (".png", ".svg", ".css", ".jpg", ".webp"): _copy(p, site/"nbs"/p.relative_to(nbs))
    config = yaml.safe_load((nbs/"_quarto.yml").read_text(encoding="utf-8"))
    names = [str(p) for p in found]
    web = config["website"]
    web["sidebar"]["contents"] = sidebar(web["sidebar"]["contents"], names)
    web["navbar"]["left"] = sidebar(web["navbar"]["left"], names)
    config["format"]["html"].pop("html-math-method", None)
    (site/"nbs/_quarto.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    (site/"pyproject.toml").write_text(configuration((nbs.parent/"pyproject.toml").read_text(encoding="utf-8")), encoding="utf-8")
    if only and "index.ipynb" not in names: (site/"nbs/index.md").write_text("# A part of the site\n")
    return names


def _copy(a, b):
    b.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(a, b)


# 2. nbdev, 3. smalldocs

def process(site, workers=2):
    "Run nbdev's processors in a process of its own, with `tools` importable; gives the folder of processed notebooks."
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])), "LLMNB_CAPTURED": "1", "LLMNB_UI": "none"}
    code = f"from nbdev.serve import proc_nbs\nif __name__ == '__main__': proc_nbs(n_workers={workers}, force=True)"
    script = site/"proc.py"
    script.write_text(code)
    run = subprocess.run([sys.executable, script], cwd=site, env=env, capture_output=True, text=True)
    if run.returncode: raise DocsError("nbdev could not process the notebooks:\n" + (re.findall(r"^Exception: (Error.*)", run.stderr, re.M | re.S) or [run.stderr[-4000:]])[-1])
    for p in (site/"_proc").rglob("*.ipynb"): _front_matter(p)
    _copy(site/"nbs/_quarto.yml", site/"_proc/_quarto.yml")
    for p in (site/"nbs").rglob("*"):
        if p.is_file() and p.suffix != ".ipynb": _copy(p, site/"_proc"/p.relative_to(site/"nbs"))
    return site/"_proc"


def _front_matter(path):
    "Drop what only Quarto knows from the page's front matter."
    nb = json.loads(path.read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        if cell["cell_type"] != "raw": continue
        source = "".join(cell["source"])
        cell["source"] = re.sub(r"^(output-file|format-links|skip_exec|skip_showdoc):.*\n", "", source, flags=re.M)
    path.write_text(json.dumps(nb), encoding="utf-8")


def lay_out(proc):
    "Run smalldocs; every warning of it is an error here, a broken link too."
    from smalldocs.site import build
    site = build(proc, quiet=True)
    if site.warnings: raise DocsError("\n".join(site.warnings))
    return site.out


# 4. Formulas and fonts

def katex():
    "The folder of a KaTeX distribution, fetched with npm once; None where npm is not to be had."
    home = Path(sys.prefix)/"share/llmnb-docs"/f"katex-{KATEX}"
    if home.is_dir(): return home
    if not shutil.which("npm"): return None
    home.parent.mkdir(parents=True, exist_ok=True)
    run = subprocess.run(["npm", "pack", "--silent", f"katex@{KATEX}"], cwd=home.parent, capture_output=True, text=True)
    packed = home.parent/f"katex-{KATEX}.tgz"
    if run.returncode or not packed.exists(): return None
    new = home.with_suffix(".new")
    with tarfile.open(packed) as tar:
        for m in tar.getmembers():
            name = m.name.removeprefix("package/dist/")
            if name in ("katex.min.css", "katex.min.js", "contrib/auto-render.min.js") or re.fullmatch(r"fonts/[\w-]+\.woff2", name):
                (new/name).parent.mkdir(parents=True, exist_ok=True)
                (new/name).write_bytes(tar.extractfile(m).read())
    packed.unlink()
    new.rename(home)
    return home


def make_local(out, log=print):
    "Formulas from a local KaTeX or as TeX; no web fonts."
    home, wanted = katex(), False
    for page in out.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if CDN not in text: continue
        wanted = True
        if home: text = text.replace(CDN, os.path.relpath(out/"site_libs/katex", page.parent))
        else: text = re.sub(rf'<link[^>]*{re.escape(CDN)}[^>]*>|<script[^>]*{re.escape(CDN)}[^>]*></script>', "", text)
        page.write_text(text, encoding="utf-8")
    if wanted and home:
        shutil.copytree(home, out/"site_libs/katex", dirs_exist_ok=True)
        css = out/"site_libs/katex/katex.min.css"
        css.write_text(re.sub(r',url\([^)]+\.(?:woff|ttf)\) format\("\w+"\)', "", css.read_text()))
    elif wanted: log("npm is missing: formulas stay TeX, readable but not drawn")
    for css in out.rglob("*.css"):
        text = css.read_text(encoding="utf-8")
        if new := re.sub(r"""@import\s+(?:url\(["']?https?:[^)]*\)|"https?:[^"]*"|'https?:[^']*')\s*;""", "", text): css.write_text(new, encoding="utf-8")


# 5. Checks

TAG = re.compile(r"<(script|img|iframe|source|video|audio|embed|link|a|image|use)\b([^>]*)>", re.I)
ATTR = re.compile(r"""([\w:-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
OUTSIDE = re.compile(r"^(?:https?:)?//", re.I)


def loads(out):
    "What a page or a stylesheet would load from outside, one line each."
    for page in sorted(out.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        for tag, attrs in TAG.findall(text):
            a = {k.lower(): d or s for k, d, s in ATTR.findall(attrs)}
            urls = [a.get(k, "") for k in ("src", "srcset", "poster", "data", *(["href", "xlink:href"] if tag.lower() in ("link", "image", "use") else []))]
            if tag.lower() == "link" and a.get("rel") == "canonical": continue
            yield from (f"{page.relative_to(out)}: <{tag}> loads {u}" for u in urls if OUTSIDE.match(u))
    for css in sorted([*out.rglob("*.css"), *out.rglob("*.html")]):
        yield from (f"{css.relative_to(out)}: {m}" for m in re.findall(r"""@import[^;]*//[^;]*|url\(["']?(?:https?:)?//[^)]*""", css.read_text(encoding="utf-8")))


def broken_links(out):
    "Links inside the site that lead nowhere: a missing file, or a missing anchor."
    ids = {}
    for page in out.rglob("*.html"): ids[page.resolve()] = set(map(html.unescape, re.findall(r"""\s(?:id|name)=["']([^"']+)["']""", page.read_text(encoding="utf-8"))))
    from urllib.parse import unquote
    for page in sorted(ids):
        for tag, attrs in TAG.findall(page.read_text(encoding="utf-8")):
            a = {k.lower(): html.unescape(d or s) for k, d, s in ATTR.findall(attrs)}
            url = a.get("href") or a.get("src") or ""
            if not url or OUTSIDE.match(url) or re.match(r"[a-z]+:", url): continue
            path, _, anchor = unquote(url).partition("#")
            target = (page.parent/path.split("?")[0]).resolve() if path else page
            if target.is_dir(): target = target/"index.html"
            if not target.exists(): yield f"{page.relative_to(out.resolve())}: {url}: no such file"
            elif anchor and target in ids and anchor not in ids[target]: yield f"{page.relative_to(out.resolve())}: {url}: no such place on that page"


def unlink_undocumented(out):
    """nbdev links every name in backticks that the package defines. A name without a section there (private, no docstring) stays
    without a link; so does a plain word such as `model` or `data` that happens to be a verb of %llm."""
    ids = {page.resolve(): page.read_text(encoding="utf-8") for page in out.rglob("*.html")}
    def one(m, page):
        path, _, anchor = html.unescape(m[1]).partition("#")
        file = (page.parent/path).resolve() if path else page
        if file not in ids: return m[0]
        word = file.name == "verbs.html" != page.name and re.fullmatch(r"<code>[a-z]+</code>", m[2])
        return m[0] if f'id="{anchor}"' in ids[file] and not word else m[2]
    for page, text in ids.items():
        new = re.sub(r'<a href="([^"#]*#[^"]+)"[^>]*>(<code>[^<]*</code>)</a>', lambda m: one(m, page), text)
        if new != text: page.write_text(new, encoding="utf-8")


def unlisted(names, config):
    "Pages that the sidebar does not show."
    def hrefs(entries): return [h for e in entries for h in ([e] if isinstance(e, str) else hrefs(e["contents"]) if "contents" in e else [e.get("href")])]
    shown = set(hrefs(config["website"]["sidebar"]["contents"]))
    return [n for n in names if plain(n) not in shown]


def build(nbs=ROOT/"nbs", out=ROOT/"_docs", work=ROOT/"build/site", only=(), log=print):
    "Build the site and check it; `out` is replaced only when all is well."
    names = stage(nbs, work, only)
    if not names: raise DocsError(f"no notebooks in {nbs}" + (f" match {', '.join(only)}" if only else ""))
    missing = unlisted(names, yaml.safe_load((work/"nbs/_quarto.yml").read_text()))
    if missing: raise DocsError("not in the sidebar of nbs/_quarto.yml: " + ", ".join(missing))
    made = lay_out(process(work))
    make_local(made, log)
    unlink_undocumented(made)
    problems = [*loads(made), *broken_links(made)]
    if problems: raise DocsError(f"{len(problems)} broken or outside links:\n" + "\n".join(problems[:40]))
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(made, out)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    log(f"{len(names)} pages, {size / 1e6:.1f} MB: {os.path.relpath(out)}/index.html")
    return out


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, default=ROOT/"_docs")
    p.add_argument("--only", action="append", default=[], metavar="GLOB", help="only these notebooks, such as 'text/*.ipynb'")
    a = p.parse_args()
    try: build(out=a.out.resolve(), only=a.only)
    except DocsError as e: sys.exit(f"The site was not built.\n{e}")
