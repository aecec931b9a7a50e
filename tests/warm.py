"""A process that has imported what pages import, and becomes one page after the other: each in a fork of its own, with its
own environment, that ends as a process ends. A third of what a small page costs is torch's and transformers' imports.

    with Warm("torch", "accelerate") as warm: code, said = warm.run(["nbdev-test", "page.ipynb"], cwd, env, tmp_path/"said")

Nothing of llmnb is imported before the fork, so no page finds what another one, or the tests, left behind.
"""
import gc, importlib, json, os, runpy, select, signal, subprocess, sys
from contextlib import suppress
from pathlib import Path


class Warm:
    "The process, from outside: it lives until it is closed, or its parent is gone."
    def __init__(self, *modules):
        self.process = subprocess.Popen([sys.executable, __file__, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        bufsize=0)   # select() sees nothing of what lies in a buffer already

    def __enter__(self): return self
    def __exit__(self, *_): self.close()

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(self, argv, cwd, env, said, timeout=600):
        "Run a Python script with arguments in a fork: its exit code (negative: a signal) and what it wrote, also kept in `said`."
        self.process.stdin.write(json.dumps(dict(argv=list(map(str, argv)), cwd=str(cwd), env=dict(env), said=str(said))).encode() + b"\n")
        pid = self._hear(600)["pid"]                      # the first one waits for the imports
        try: return self._hear(timeout)["code"], Path(said).read_text(encoding="utf-8", errors="replace")
        except TimeoutError:
            with suppress(ProcessLookupError): os.killpg(pid, signal.SIGKILL)
            self._hear(600)
            raise

    def _hear(self, seconds):
        if not select.select([self.process.stdout], [], [], seconds)[0]: raise TimeoutError(f"no answer in {seconds} s")
        if not (line := self.process.stdout.readline()): raise RuntimeError("the warm process is gone")
        return json.loads(line)


def serve(ask, tell):
    "Fork for each line of `ask`; gives the job in the fork, and None at the end."
    for line in ask:
        job = json.loads(line)
        if (pid := os.fork()) == 0:
            os.setsid()
            return job
        print(json.dumps(dict(pid=pid)), file=tell, flush=True)
        print(json.dumps(dict(code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))), file=tell, flush=True)


def become(argv, cwd, env, said):
    "Go on as if `python argv` had been started here."
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd in (1, 2): os.dup2(out, fd)
    os.close(out)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv, sys.path[0] = argv, str(Path(argv[0]).parent)
    runpy.run_path(argv[0], run_name="__main__")


def main(modules):
    ask, tell = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1): os.dup2(null, fd)
    for m in modules: importlib.import_module(m)
    gc.collect()
    gc.freeze()                                  # a fork's collector has only its own objects to look at
    job = serve(ask, tell)
    ask.close(), tell.close()
    if job: become(**job)


if __name__ == "__main__": main(sys.argv[1:])
