"""llmnb: the notebook workbench for language models."""
__version__ = "0.1.0"


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
