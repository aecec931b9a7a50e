"""llmnb: the notebook workbench for language models."""
import os

__version__ = "0.1.0"

# PyTorch's CPU threads (GNU OpenMP) wait for each other by spinning. Where another program has one of the cores, the
# spinning takes the very core that the awaited thread needs, and a training step gets ten times slower. A short spin
# costs nothing on a quiet machine. It is read when torch is loaded, so it has to be said here.
if "OMP_WAIT_POLICY" not in os.environ: os.environ.setdefault("GOMP_SPINCOUNT", "10000")


class LLMNBError(Exception):
    "Base of every error that llmnb raises on purpose: it names the value, what was expected, and the fix."


def load_ipython_extension(ip):
    "What `%load_ext llmnb` calls: adds the `%llm` and `%%llm` magics."
    from .notebook.magics import load_ipython_extension as load
    load(ip)


def unload_ipython_extension(ip):
    "What `%unload_ext llmnb` calls."
    from .notebook.magics import unload_ipython_extension as unload
    unload(ip)
