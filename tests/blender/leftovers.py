"""What runs of the add-on may leave behind in Blender and in Python, counted.

The window's scenarios run this file too: it imports nothing of the tests and of the checkout.

Blender keeps the last operators that ran, so these are not counted, only what they hold on to. It does not list its
timers and draw handlers. But each holds on to its Python function, so the references to the add-on's functions tell
them all, and everything else that may have been registered with Blender.
"""

import gc
import os
import sys
import tempfile
import threading
import types
from collections import Counter
from pathlib import Path

import bpy


def left_over(package: str) -> dict:
    """Everything of the add-on `package` that has to be the same before and after a run; `difference` compares it."""
    for _ in range(3):  # what a finalizer lets go of is found by the next
        gc.collect()
    modules = {name: module for name, module in sys.modules.items() if name.startswith(f"{package}.sprig_blender.")}
    kinds = [prop.identifier for prop in bpy.data.bl_rna.properties if prop.type == "COLLECTION"]
    return {
        "handlers": Counter(
            name
            for name in dir(bpy.app.handlers)
            if isinstance(handlers := getattr(bpy.app.handlers, name), list)
            for _ in handlers
        ),
        "references": Counter(
            {
                f"{name}.{function.__name__}": sys.getrefcount(function)
                for name, module in modules.items()
                for function in vars(module).values()
                if isinstance(function, types.FunctionType) and function.__module__ == name
            }
        ),
        "instances": Counter(
            f"{kind.__module__}.{kind.__name__}"
            for kind in map(type, gc.get_objects())
            if str(kind.__module__).startswith(package) and not issubclass(kind, bpy.types.Operator)
        ),
        "threads": Counter(thread.name for thread in threading.enumerate() if "SPRig" in thread.name),
        "processes": Counter(children()),
        "files": Counter(path.name for path in Path(tempfile.gettempdir()).glob("sprig*")),
        "blocks": Counter({kind: len(getattr(bpy.data, kind)) for kind in kinds}),
    }


def difference(before: dict, after: dict) -> dict[str, str]:
    """What has become more or less, in words that can be read in a failing test."""
    changes = {}
    for kind in before:
        for name in before[kind] | after[kind]:
            if before[kind][name] != after[kind][name]:
                changes[f"{kind}: {name}"] = f"{before[kind][name]}, then {after[kind][name]}"
    return changes


def children() -> list[str]:
    """The names of this process's children, where the system lists them (Linux)."""
    numbers = [number for file in Path("/proc/self/task").glob("*/children") for number in file.read_text().split()]
    names = []
    for number in numbers:
        try:
            names.append(Path(f"/proc/{number}/comm").read_text().strip())
        except OSError:  # it has ended meanwhile
            continue
    return names


def resident_megabytes() -> float:
    """The memory that this process takes at the moment (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
