"""Run a notebook in a fresh kernel and keep what it shows.

    python tools/execute.py NB.ipynb --out COPY.ipynb --show 'trainer.valid_loss' --show 'out.text'
    python tools/execute.py --in-place [NB.ipynb ...]      # all pages by default; outputs are stored, then cleaned

Prints one line a cell, and while a training run writes its log, the latest row of it.
"""
import argparse, ast, asyncio, json, os, re, sys, tempfile, threading, time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbclient.util import ensure_async

ROOT = Path(__file__).resolve().parent.parent


LOCAL = re.compile(re.escape(tempfile.gettempdir()) + r"/tmp\w{8}/|" + re.escape(f"{ROOT}/"))    # another name in each run, and on each machine


def label(cell):
    "What a cell is about, in one line: its first line of code."
    lines = [l.strip() for l in cell.source.splitlines()]
    return next((l for l in lines if l and not l.startswith("#")), lines[0] if lines else "")[:72]


class Progress:
    "One line a cell; below it, while the cell trains, the newest row of the newest run log."
    def __init__(self, runs, out=sys.stderr, every=5.0):
        self.runs, self.out, self.every = Path(runs), out, every
        self.tty, self.began, self.text, self.done = out.isatty(), time.time(), "", threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    def start(self, n, of, cell):
        self.text, self.cell_began = f"[{n:>2}/{of}] {label(cell)}", time.time()
        self.out.write(self.text if self.tty else f"{self.text}\n")
        self.out.flush()

    def end(self, ok=True):
        took = time.time() - self.cell_began
        if self.tty: self.out.write(f"\r\033[K{self.text}  {took:.1f} s\n")
        elif took >= 1: self.out.write(f"        {took:.1f} s\n")
        if not ok: self.out.write("        failed\n")
        self.out.flush()

    def _watch(self):
        shown = None
        while not self.done.wait(0.5 if self.tty else self.every):
            row = self.newest()
            if not row or row == shown: continue
            shown = row
            self.out.write(f"\r\033[K{self.text}  {row}" if self.tty else f"        {row}\n")
            self.out.flush()

    def newest(self):
        "The last complete row of the log that was written last, if that was after we began."
        logs = [(p.stat().st_mtime, p) for p in self.runs.rglob("log.jsonl")] if self.runs.is_dir() else []
        if not logs or max(logs)[0] < self.began: return ""
        rows = [_row(line) for line in _tail(max(logs)[1]).splitlines()]
        seen = {}
        for row in filter(None, rows): seen.update({k: row[k] for k in FIELDS if row.get(k) is not None})
        of = f" of {steps}" if (steps := _steps(max(logs)[1].with_name("run.json"))) else ""
        return "  ".join(FIELDS[k].format(seen[k]) + of * (k == "step") for k in FIELDS if k in seen)


FIELDS = dict(step="step {}", loss="loss {:.3f}", valid_loss="valid {:.3f}", tokens_per_second="{:,.0f} tokens/s")


def _tail(path, size=20_000):
    with open(path, "rb") as f:
        f.seek(max(0, os.fstat(f.fileno()).st_size - size))
        return f.read().decode("utf-8", "replace")


def _row(line):
    try: row = json.loads(line)
    except ValueError: return None
    return row if isinstance(row, dict) else None


def _steps(path):
    "How many steps a run will make, if it says so."
    try: return json.loads(path.read_text(encoding="utf-8"))["train"]["steps"]
    except (OSError, ValueError, KeyError, TypeError): return None


async def _ask(client, expressions):
    "The values of expressions in the kernel, without a trace in the notebook: value, or an `Exception` that tells."
    msg = client.kc.execute("", silent=True, store_history=False, user_expressions={e: f"__import__('json').dumps({e}, default=str)" for e in expressions})
    while True:
        reply = await ensure_async(client.kc.get_shell_msg(timeout=60))
        if reply["parent_header"].get("msg_id") == msg: break
    answers = reply["content"].get("user_expressions", {})
    return {e: json.loads(ast.literal_eval(a["data"]["text/plain"])) if a["status"] == "ok" else RuntimeError(f"{a['ename']}: {a['evalue']}") for e, a in answers.items()}


async def _execute(nb, folder, runs, show, out):
    client = NotebookClient(nb, timeout=None, kernel_name="python3", extra_arguments=["--log-level=40"], resources={"metadata": {"path": str(folder)}})
    code = [c for c in nb.cells if c.cell_type == "code" and c.source.strip()]
    with Progress(runs, out) as progress:
        async with client.async_setup_kernel():
            for i, cell in enumerate(nb.cells):
                if cell not in code: continue
                progress.start(code.index(cell) + 1, len(code), cell)
                try: await client.async_execute_cell(cell, i, execution_count=client.code_cells_executed + 1)
                except CellExecutionError:
                    progress.end(ok=False)
                    raise
                progress.end()
            return await _ask(client, show) if show else {}


def _run(*args):
    "`_execute`, where a kernel that died is said to have died."
    try: return asyncio.run(_execute(*args))
    except AssertionError as e:                   # nbclient's own clean-up trips over a dead kernel
        if isinstance(e.__context__, DeadKernelError): raise DeadKernelError("The kernel died: out of memory, or ended from outside.") from None
        raise


def execute(path, out=None, show=(), runs=None, log=sys.stderr):
    "Run the notebook `path` and write it, with what it shows, to `out` (also when a cell fails); gives the values of `show`."
    path, out = Path(path), Path(out or path)
    os.environ.update(LLMNB_CAPTURED="1", JUPYTER_PREFER_ENV_PATH="1", PYTHONUNBUFFERED="1", PYDEVD_DISABLE_FILE_VALIDATION="1")
    if runs: os.environ["LLMNB_RUNS_PATH"] = str(Path(runs).resolve())
    nb = nbformat.read(path, 4)
    try: return _run(nb, path.resolve().parent, os.environ.get("LLMNB_RUNS_PATH", ROOT/"runs"), show, log)
    finally:
        clean(nb)
        out.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, out)


def clean(nb):
    "What a stored notebook does without: widget state, which needs a kernel, and what differs from run to run."
    nb.metadata.pop("widgets", None)
    nb.metadata.pop("language_info", None)
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        for o in cell.get("outputs", []):
            o.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
            for where in (o, o.get("data", {})):
                for key, said in where.items():
                    if isinstance(said, str): where[key] = LOCAL.sub("", said)


def pages():
    "Every notebook of nbs/, the lessons in the order of the floors."
    return sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(ROOT).parts))


def in_place(paths):
    "Run pages where they are; a page that fails is left as it was."
    from nbdev.clean import nbdev_clean
    for path in paths:
        print(path.relative_to(ROOT), file=sys.stderr)
        tmp = path.with_suffix(".running")
        try:
            execute(path, tmp)
            tmp.replace(path)
        finally: tmp.unlink(missing_ok=True)
        nbdev_clean(str(path))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("notebooks", nargs="*", type=Path)
    p.add_argument("--out", type=Path, help="where to write the executed copy")
    p.add_argument("--in-place", action="store_true", help="store the outputs in the notebooks themselves")
    p.add_argument("--show", action="append", default=[], metavar="EXPR", help="print this value of the kernel at the end")
    a = p.parse_args()
    try:
        if a.in_place: in_place([n.resolve() for n in a.notebooks] or pages())
        elif len(a.notebooks) == 1 and a.out:
            for name, value in execute(a.notebooks[0], a.out, a.show).items(): print(f"{name} = {value}")
        else: p.error("either --in-place, or one notebook and --out")
    except (CellExecutionError, DeadKernelError) as e: sys.exit(f"\n{e}")
