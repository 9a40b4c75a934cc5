"""Whether an Alembic (Ogawa) file is structurally whole, found out without any Alembic library.

The C++ libraries trust the offsets in the file: on a truncated one alembic3d raises at some point, Blender's importer
aborts the process. An Ogawa file is a tree of groups over blocks of data. The first 16 bytes are "Ogawa", one byte
that becomes 255 when the file was finished, a two-byte version and the offset of the root group. A group is a 64-bit
count and as many 64-bit offsets; the top bit marks a block of data, which is a 64-bit length and that many bytes; an
offset without other bits is an empty group or block. All little-endian. Groups and blocks may be shared, not nested
in themselves.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from ..errors import SprigError

HEADER_BYTES = 16
MAX_DEPTH = 1000  # of nested groups; objects and compound properties take two to four each
MAX_GROUPS = 10_000_000  # one for each property and object
DATA_BIT = 1 << 63
LENGTH = struct.Struct("<Q")


def check_structure(path) -> None:
    """Raise SprigError unless every group and block of the file lies within it."""
    path = Path(path)
    if path.stat().st_size < HEADER_BYTES:
        raise SprigError(f"{path.name} is truncated: it is shorter than an Alembic header; export it again.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:8] == b"\x89HDF\r\n\x1a\n":
            raise SprigError(f"{path.name} is an Alembic archive of the old HDF5 kind; convert it to Ogawa.")
        if data[:5] != b"Ogawa":
            raise SprigError(f"{path.name} is no Alembic archive; export it again.")
        if data[5] != 255:
            raise SprigError(f"{path.name} was not written to its end; export it again.")
        if not _is_whole(data, LENGTH.unpack_from(data, 8)[0]):
            raise SprigError(f"{path.name} is truncated or damaged: parts of it lie outside the file; export it again.")


def _is_whole(data, root: int) -> bool:
    """Walk the tree depth first; a group on the path to itself, like an offset outside the file, is damage."""
    size = len(data)
    done, on_path = set(), {root}
    if root & DATA_BIT or root == 0:
        return False
    stack = [(root, _groups_within(data, root))]
    while stack:
        position, children = stack[-1]
        if children is None or len(stack) > MAX_DEPTH or len(done) > MAX_GROUPS:
            return False
        if not children:
            stack.pop()
            on_path.discard(position)
            done.add(position)
            continue
        child = children.pop()
        if child in on_path:
            return False
        if child not in done:
            on_path.add(child)
            stack.append((child, _groups_within(data, child)))
    return size >= HEADER_BYTES


def _groups_within(data, position: int) -> list[int] | None:
    """Offsets of the groups in a group, or None when the group or one of its blocks is not within the file."""
    size = len(data)
    if position + LENGTH.size > size:
        return None
    count = LENGTH.unpack_from(data, position)[0]
    if position + LENGTH.size * (1 + count) > size:
        return None
    groups = []
    for offset in struct.unpack_from(f"<{count}Q", data, position + LENGTH.size):
        place = offset & ~DATA_BIT
        if place == 0:
            continue
        if not offset & DATA_BIT:
            groups.append(place)
        elif place + LENGTH.size > size or place + LENGTH.size + LENGTH.unpack_from(data, place)[0] > size:
            return None
    return groups
