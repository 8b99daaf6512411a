"""Prints what one extra of `pyproject.toml` needs, a line each: `python requirements.py gateway < pyproject.toml`.

Images install that before the source comes in, so that a change of the source does not install everything again.
"""

import sys
import tomllib


def main() -> int:
    """Print the requirements of the extra that is named."""
    project = tomllib.load(sys.stdin.buffer)["project"]
    extras = project["optional-dependencies"]
    if len(sys.argv) != 2 or sys.argv[1] not in extras:
        print(f"usage: requirements.py {'|'.join(extras)} < pyproject.toml", file=sys.stderr)
        return 2
    print(*project["dependencies"], *extras[sys.argv[1]], sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
