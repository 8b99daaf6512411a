"""Prints what extras of `pyproject.toml` need, a line each: `python requirements.py gateway otel < pyproject.toml`.

Images install that before the source comes in, so that a change of the source does not install everything again.
"""

import sys
import tomllib


def main() -> int:
    """Print the requirements of the extras that are named."""
    project = tomllib.load(sys.stdin.buffer)["project"]
    extras = project["optional-dependencies"]
    if not sys.argv[1:] or not set(sys.argv[1:]) <= extras.keys():
        print(f"usage: requirements.py {'|'.join(extras)}... < pyproject.toml", file=sys.stderr)
        return 2
    print(*project["dependencies"], *(line for name in sys.argv[1:] for line in extras[name]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
