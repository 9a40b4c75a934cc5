"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from pathlib import Path

from ..errors import SprigError


@contextmanager
def whole_file(path):
    """A temporary name beside `path` to write to; it takes the place of `path` when the block ends without an error.

    Raises SprigError where that cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "it is write-protected")
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SprigError(
            f"{path} cannot be written ({error.strerror or error}); check the folder, its permissions and free space."
        ) from error
