"How `show_doc` draws a symbol on the documentation site: signature, docstring, parameter table, and the same for each method."
import html, importlib, inspect, re
from dataclasses import is_dataclass

from fastcore.docments import DocmentTbl, DocmentText
from nbdev.showdoc import BasicMarkdownRenderer

WIDTH = 88
_none = inspect.Parameter.empty


def named(sym):
    "Let annotations written as text stand as they are: the module may import what they name only inside functions."
    for f in (sym, *(vars(sym).values() if inspect.isclass(sym) else ())):
        f = getattr(f, "__func__", None) or getattr(f, "fget", None) or f
        for name, text in list(getattr(f, "__annotations__", {}).items()) if inspect.isfunction(f) else ():
            if isinstance(text, str): f.__annotations__[name] = type(text, (), {"__module__": "builtins"})
    return sym


def signature(sym):
    "The signature without comments: they are in the table."
    text = DocmentText(sym, maxline=10**6, docstring=False)
    text.dm.pop("cls", None)
    for p in text.dm.values():
        p["docment"] = ""
        if p.get("anno") is type(None): p["anno"] = _none            # fastcore's guess from a default of None
    text = str(text).replace("__main__.", "").replace("typing.", "").replace("collections.abc.", "")
    line = re.sub(r"\(\s+", "(", re.sub(r"\s*\n\s*", " ", text)).rstrip(":").replace(" )", ")")
    if inspect.isclass(sym): line = re.sub(r"\(\)$", "", re.sub(r"\)->[^)]*$", ")", line.replace("def ", "class ", 1)))
    line = re.sub(r"(?<=[(,\s])self, ?|(?<=\()self(?=\))", "", line, count=1)
    if len(line) <= WIDTH: return line
    head, _, rest = line.partition("(")
    args, _, tail = rest.rpartition(")")
    return f"{head}(\n    " + ",\n    ".join(_split(args)) + f"\n){tail}"


def _split(args):
    "Split arguments at the commas outside brackets and strings."
    out, depth, quote = [""], 0, ""
    for ch in args:
        if quote: quote = "" if ch == quote else quote
        elif ch in "'\"": quote = ch
        elif ch in "([{": depth += 1
        elif ch in ")]}": depth -= 1
        if ch == "," and not depth and not quote: out.append("")
        else: out[-1] += ch
    return [a.strip() for a in out if a.strip()]


def exported(sym):
    "The class as the package has it: one that a cell defined has no source to read comments from."
    if not inspect.isclass(sym) or sym.__module__ != "__main__": return sym
    from llmnb._modidx import d
    homes = [m for m, known in d["syms"].items() if f"{m}.{sym.__name__}" in known]
    found = [getattr(importlib.import_module(m), sym.__name__, None) for m in homes]
    return next((f for f in found if inspect.isclass(f) and f.__doc__ == sym.__doc__), sym)


def table(sym):
    "The parameter table, or nothing where no parameter has a comment."
    sym = exported(sym)
    try: rows = DocmentTbl(sym)
    except Exception: return ""
    if not any(p.get("docment", _none) not in (_none, None) for p in rows.dm.values()): return ""
    columns = [k for k in ("anno", "default", "docment") if any(_cell(rows.dm[p], k) for p in rows.dm)]
    names = [p for p in rows.dm if p not in ("return", "cls")] + ["return"] * ("return" in rows.dm and not inspect.isclass(sym))
    head = "| |" + "|".join({"anno": "Type", "default": "Default", "docment": ""}[k] for k in columns) + "|"
    body = [f"| {'*returns*' if p == 'return' else f'<code>{p}</code>'} | " + " | ".join(_cell(rows.dm[p], k) for k in columns) + " |" for p in names]
    return "\n".join([head, "|---" * (len(columns) + 1) + "|", *body])


def _cell(p, key):
    "One cell: a type and a default as code (in backticks only what nbdev may make a link of), a comment as text."
    value = p.get(key, _none)
    if value in (_none, type(None)) or (value is None and key != "default"): return ""
    if key == "docment": return value.replace("|", "\\|").replace("\n", " ")
    text = value if key == "anno" and isinstance(value, str) else inspect.formatannotation(value) if key == "anno" else getattr(value, "__name__", None) or repr(value)
    text = text.replace("__main__.", "").replace("typing.", "").replace("collections.abc.", "").replace("\n", " ").replace("|", "\\|")
    text = text[:40] + "…" * (len(text) > 40)
    return f"`{text}`" if key == "anno" else f"<code>{html.escape(text)}</code>"


def methods(cls):
    "(name, function) of the public methods and properties that a class defines itself and documents."
    for name, obj in vars(cls).items():
        if name.startswith("_"): continue
        fn = obj.__func__ if isinstance(obj, (classmethod, staticmethod)) else obj.fget if isinstance(obj, property) else obj
        if inspect.isfunction(fn) and inspect.getdoc(fn): yield name, obj, fn


class ParameterTables(BasicMarkdownRenderer):
    "nbdev's renderer with a short signature, a parameter table, and the methods of a class."
    def __init__(self, sym, **kwargs): super().__init__(named(sym), **kwargs)

    def _repr_markdown_(self):
        sym, level = self.sym, self.title_level
        parts = [f"{'#' * level} {self.nm} {{.symbol}}", *self._body(sym, self.docs)]
        if inspect.isclass(sym):
            for name, obj, fn in methods(sym): parts += [f"{'#' * (level + 1)} {self.nm}.{name} {{.symbol .method}}", *self._body(fn, inspect.getdoc(fn), isinstance(obj, property))]
        return "\n\n".join(p for p in parts if p)

    def _body(self, sym, doc, is_property=False):
        if is_property: return [doc, _returns(sym)]
        try: head = signature(sym)
        except Exception: head = str(self.dm)
        if inspect.isclass(sym) and issubclass(sym, BaseException): head = f"class {sym.__name__}({', '.join(b.__name__ for b in sym.__bases__)})"
        shown = table(sym) if not inspect.isclass(sym) or is_dataclass(sym) or "__init__" in vars(sym) else ""
        return [f"```python\n{head}\n```", doc, shown]


def _returns(fn):
    "What a property gives, as a line."
    r = DocmentText(fn, docstring=False).dm.get("return", {})
    return f"*{r['docment']}*" if r.get("docment") else ""
