"""Running another program beside Blender's window: its output line by line, and its end as soon as nobody wants it."""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections.abc import Callable
from typing import Any

POLL = 0.2  # seconds between two looks at a child: how late a cancel may come


def run(
    command: list[str], on_line: Callable[[str], None], environment: dict[str, str] | None = None, errors: Any = None
) -> tuple[int, str]:
    """Run a child and return its exit status and output; on_line gets every line, and "" now and then.

    environment: variables to set besides ours; errors: a file for what it writes to stderr, which else is part of the
    output. When on_line raises (Cancelled), the child is killed. OSError when it cannot be started.
    """
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors or subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONNOUSERSITE": "1", **(environment or {})},
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # no console window pops up on Windows
    )

    def read():
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    reader = threading.Thread(target=read, name="SPRig output", daemon=True)
    reader.start()
    output = []
    try:
        while True:
            try:
                line = lines.get(timeout=POLL)
            except queue.Empty:
                line = ""
            if line is None:
                break
            output.append(line)
            on_line(line)
        return child.wait(), "".join(output)
    finally:
        child.kill()
        child.wait()
        reader.join()
        child.stdout.close()
