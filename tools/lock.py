"Print constraints.txt: every package of the environment that runs this, at its version. `make lock` calls it in a fresh one."
import platform, subprocess, sys

HEAD = """\
# Every package of a tested environment, for `pip install -c constraints.txt -e '.[dev]'`. Made by `make lock`; do not edit.
# Python {python}. torch is pinned to a release with a CPU build; pip takes that build where its index or
# --find-links offers it (make test PIP_ARGS='--extra-index-url ...'), else the default build of the same release.
"""


def pins():
    "name==version lines, without editable installs, comments and the +cpu of torch."
    out = subprocess.run([sys.executable, "-m", "pip", "freeze", "--exclude-editable", "--exclude", "pip", "--exclude", "setuptools"], check=True, capture_output=True, text=True).stdout
    return [line.split("+")[0] for line in out.splitlines() if "==" in line and not line.startswith("#")]


if __name__ == "__main__":
    print(HEAD.format(python=".".join(platform.python_version_tuple()[:2])), end="")
    print(*pins(), sep="\n")
