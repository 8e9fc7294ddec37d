"""Makes an API key: `python -m serve_app.auth.make_key TENANT [--scopes generate,read] [--file KEYS]`.

The key is printed once and kept nowhere. Its line goes to the end of --file (made with mode 600), or is printed too.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from serve_app.auth.keys import BadKeys, Scope, new_key


def main(arguments: Sequence[str]) -> int:
    """0 when a key was made."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.auth.make_key", description="Make an API key.")
    parser.add_argument("tenant", help="whose jobs and images it is for: 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-'")
    parser.add_argument("--scopes", default="generate,read", help="of generate, read, admin (default: %(default)s)")
    parser.add_argument("--file", type=Path, help="append the key's line to this file (access.keys_file)")
    asked = parser.parse_args(arguments)
    try:
        key, line = new_key(asked.tenant, frozenset(Scope(name) for name in asked.scopes.split(",")))
        if asked.file is not None:
            _append(asked.file, line)
    except (BadKeys, ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{key}\n")
    if asked.file is None:
        sys.stdout.write(f"{line}\n")
    return 0


def _append(path: Path, line: str) -> None:
    """In one write, so that a service that reads meanwhile sees all of it or nothing."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        ends = file.seek(0, os.SEEK_END)
        torn = ends > 0 and os.pread(descriptor, 1, ends - 1) != b"\n"
        file.write(("\n" * torn + line + "\n").encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
