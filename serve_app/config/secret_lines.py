"""Where lines with keys or secrets are kept: a small file, or an environment variable."""

import os
import re
from pathlib import Path

# whose a line is
TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)

# such a file is small; whatever is longer is another file
_MAX_BYTES = 4 << 20


def read_lines(file: Path | None, variable: str | None, *, setting: str, error: type[ValueError]) -> str:
    """The text of the file, or where there is none of the variable.

    Args:
        file: UTF-8.
        variable: Its name.
        setting: What names the variable, for the message.
        error: Raised where the text can't be read; its message holds nothing of the text.
    """
    if file is None:
        text = os.environ.get(variable or "")
        if text is None:
            raise error(f"{setting}: there is no environment variable {variable}")
        return text
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
    except OSError as cause:
        raise error(f"{file}: {cause.strerror}") from cause
    if len(data) > _MAX_BYTES:
        raise error(f"{file}: longer than {_MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise error(f"{file}: not UTF-8") from None
