"`make demo`: run the quickstart headless on real Shakespeare, and tell what came out of it."
import os, shutil, sys, textwrap, time
from pathlib import Path

from nbclient.exceptions import CellExecutionError, DeadKernelError

sys.path.insert(0, str(Path(__file__).parent))
from execute import ROOT, execute

PAGE, OUT = ROOT/"nbs/tutorials/01_quickstart.ipynb", ROOT/"runs/demo"


def demo(page=PAGE, out=OUT, log=sys.stderr):
    "Execute the page into `out`; gives (the executed copy, what the kernel says of the run)."
    shutil.rmtree(out, ignore_errors=True)        # the demo's own folder: other runs are not touched
    copy = out/page.name
    return copy, execute(page, copy, show=("trainer.valid_loss", "out.prompt", "out.text"), runs=out, log=log)


def report(copy, said, seconds):
    "The three things to know at the end."
    loss, prompt, text = said["trainer.valid_loss"], said["out.prompt"], said["out.text"]
    return "\n".join(["", f"validation loss    {loss:.4f} nats a token", "generated", textwrap.indent(f"{prompt}{text}".strip(), "    "),
        f"executed notebook  {os.path.relpath(copy)}", f"time               {seconds:.0f} s"])


if __name__ == "__main__":
    start = time.time()
    try: copy, said = demo()
    except (CellExecutionError, DeadKernelError) as e: sys.exit(f"\nThe quickstart stopped; the page so far is in {os.path.relpath(OUT/PAGE.name)}.\n{e}")
    for name, value in said.items():
        if isinstance(value, Exception): sys.exit(f"The quickstart ran, but does not say {name} at its end: {value}")
    print(report(copy, said, time.time() - start))
