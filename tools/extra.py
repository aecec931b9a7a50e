"The requirements of one extra of llmnb, on one line: `python tools/extra.py samples`."
import sys
from importlib.metadata import requires


def extra(name, dist="llmnb"):
    "Requirement strings of an extra, without their markers."
    return [r.split(";")[0].strip() for r in requires(dist) or () if f'extra == "{name}"' in r.replace("'", '"')]


if __name__ == "__main__":
    found = extra(sys.argv[1])
    if not found: sys.exit(f"llmnb has no extra {sys.argv[1]!r}")
    print(*found)
