"""Which module of llmnb imports which, and whether each arrow points up the house.

A floor imports only from the floors in its row; `all` may import everything, and nothing imports `all`.
"""
import ast
from pathlib import Path

GROUND = {"settings", "device", "plugins", "display"}
ALLOWED = {                                # floor: the floors that it may import, besides itself
    "ground": set(),
    "text": {"ground"},
    "model": {"ground", "text"},
    "train": {"ground", "text", "model"},
    "decode": {"ground", "text", "model"},
    "measure": {"ground", "text", "model", "train", "decode"},
    "shrink": {"ground", "text", "model", "train", "decode"},
    "notebook": {"ground", "text", "model", "train", "decode", "measure", "shrink"},
}
WIDGETS = {"ipywidgets", "anywidget"}      # only the floor `notebook`
HAND_WRITTEN = {"llmnb", "llmnb._modidx"}  # modules without a notebook


def modules(package):
    "{dotted name: path} of every module under a package's folder."
    found = {}
    for path in sorted(Path(package).rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name, source, is_package=False):
    "Absolute dotted names that a module imports anywhere: at its top, in functions, relative, or through `import_module(\"...\")`."
    base = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            head = base[:len(base) - node.level + 1] if node.level else []
            target = ".".join([*head, *filter(None, [node.module])])
            yield from ([f"{target}.{a.name}" for a in node.names] if target == "llmnb" else [target])      # from . import plugins
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__"):
            if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str): yield node.args[0].value


def floor(name):
    "The floor of a module, or None for the package itself and its index."
    parts = name.split(".")
    if parts[0] != "llmnb" or len(parts) == 1: return None
    if parts[1] in GROUND: return "ground"
    return parts[1] if parts[1] in ALLOWED or parts[1] == "all" else None


def wrong_arrows(name, source, is_package=False):
    "What a module imports that it must not, one sentence each."
    here = floor(name)
    for target in imports(name, source, is_package):
        there, top = floor(target), target.split(".")[0]
        if top in WIDGETS and here != "notebook" and name != "llmnb.all": yield f"{name} imports {target}: only llmnb.notebook does"
        if here in (None, "all") or there in (None, here): continue
        if there not in ALLOWED[here]: yield f"{name} ({here}) imports {target} ({there}): {here} may import {', '.join(sorted(ALLOWED[here])) or 'nothing of llmnb'}"


def strangers(names):
    "Modules that stand on no floor: a new folder needs a row in ALLOWED."
    return [n for n in names if n not in HAND_WRITTEN and floor(n) is None]


def star_imports(name, source):
    "Star imports of a module; only `llmnb.all` has any."
    return [f"{name}: from {n.module} import *" for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom) and name != "llmnb.all" and any(a.name == "*" for a in n.names)]
