"""What Puppeteer's tokens mean, and one valid tree out of any of them.

Nothing constrains the released decoder, and where its tokens do not make a skeleton (a count that is no multiple of 4
or 6, a parent out of range, no bone at all) Puppeteer itself returns nothing. Here every sequence ends in a tree: what
is left over is dropped, and joints that lead to no root are hung where they come nearest to the tree.
"""

from __future__ import annotations

import numpy as np
import torch

from ..skeleton.tokens import BINS, EOS, FIRST_BIN, dequantise

NO_PARENT = -1


def greedy_tree(model, points) -> tuple[np.ndarray, np.ndarray]:
    """The skeleton Puppeteer itself would give, repaired: joints (J,3) float32 and parents (J,) int64 as `one_tree`.

    model: a PuppeteerSkeleton of joint or bone tokens; points (1,N,6), a tensor on its device, as for `condition`.
    """
    with torch.no_grad():
        ids = model.greedy(model.condition(points))[0]
    return one_tree(ids.cpu().numpy(), model.config.tokens_per_slot)


def bones_from_bins(bins, tokens_per_slot: int) -> np.ndarray:
    """Bones (B,2,3) float32, parent then child position, as the bins (n,) say without any repair; -1 is padding.

    With 4 tokens for a joint a root makes no bone; nor does a joint whose parent is out of range.
    """
    slots = _whole_slots(bins, tokens_per_slot)
    if tokens_per_slot == 6:
        return dequantise(slots, 0.0).reshape(-1, 2, 3)
    joints, parents = dequantise(slots[:, :3], 0.0), slots[:, 3] - 1
    child = np.flatnonzero((parents >= 0) & (parents < len(joints)))
    return np.stack([joints[parents[child]], joints[child]], axis=1)


def one_tree(ids, tokens_per_slot: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Joints (J,3) float32 and parents (J,) int64 of any token ids (n,): root first, parents before children.

    The first id counts as BOS whatever it is, as in Puppeteer. Ignored are all ids from the first EOS on, BOS and PAD
    elsewhere, and an incomplete joint or bone at the end. Joints in one place become one. The root is the first joint
    that calls itself so (4 tokens), or the first that is a parent and no child (6 tokens), else the first of all; the
    order is kept where parents allow. A sequence without a joint gives one in the middle.
    """
    ids = np.asarray(ids, dtype=np.int64)[1:]
    ends = np.flatnonzero(ids == EOS)
    slots = _whole_slots(ids[: ends[0] if len(ends) else len(ids)] - FIRST_BIN, tokens_per_slot)
    if len(slots) == 0:
        return np.zeros((1, 3), dtype=np.float32), np.array([NO_PARENT])
    places, parents, root = _joints_of_bones(slots) if tokens_per_slot == 6 else _joints(slots)
    parents = _connect(places, parents, root)
    places, parents = _merge(*_in_order(places, parents))
    return dequantise(places, 0.0), parents


def _whole_slots(bins, tokens_per_slot: int):
    """Bins (n,) without padding as rows (slots, tokens_per_slot)."""
    bins = np.asarray(bins, dtype=np.int64)
    bins = bins[(bins >= 0) & (bins < BINS)]
    return bins[: len(bins) // tokens_per_slot * tokens_per_slot].reshape(-1, tokens_per_slot)


def _joints(slots):
    """Places (J,3) in bins; parents (J,), NO_PARENT where the token names no joint or the joint itself; the root."""
    parents = slots[:, 3] - 1
    none = (parents >= len(slots)) | (parents == np.arange(len(slots)))
    root = int((parents == NO_PARENT).argmax())  # 0 where none calls itself a root
    return slots[:, :3], np.where(none, NO_PARENT, parents), root


def _joints_of_bones(slots):
    """As `_joints`, of bones: equal positions are one joint, the first parent counts, no bone has length zero."""
    numbers, parents = {}, []
    for bone in slots.tolist():
        head, tail = tuple(bone[:3]), tuple(bone[3:])
        for place in (head, tail):
            if place not in numbers:
                numbers[place] = len(numbers)
                parents.append(NO_PARENT)
        if head != tail and parents[numbers[tail]] == NO_PARENT:
            parents[numbers[tail]] = numbers[head]
    parents = np.array(parents)
    joint = np.arange(len(parents))
    root = int(((parents == NO_PARENT) & np.isin(joint, parents)).argmax())
    return np.array(list(numbers)), parents, root


def _connect(places, parents, root: int):
    """Parents (J,) of one tree below the root: loose parts and loops are hung where they come nearest to the tree."""
    parents = parents.copy()
    parents[root] = NO_PARENT
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    while True:
        inside = _leads_to(parents, root)
        if inside.all():
            return parents
        # A loose part hangs by its top. Where only loops are left, any of their joints may be it.
        tops = np.flatnonzero(~inside & (parents == NO_PARENT))
        if len(tops) == 0:
            tops = np.flatnonzero(_in_loop(parents))
        tree = np.flatnonzero(inside)
        top, nearest = np.unravel_index(distance[np.ix_(tops, tree)].argmin(), (len(tops), len(tree)))
        parents[tops[top]] = tree[nearest]


def _ancestors(parents):
    """Each joint's ancestor J steps up: NO_PARENT, or a joint of a loop."""
    ancestor = np.arange(len(parents))
    for _step in range(len(parents)):
        ancestor = np.where(ancestor == NO_PARENT, NO_PARENT, parents[ancestor])
    return ancestor


def _in_loop(parents):
    return np.isin(np.arange(len(parents)), _ancestors(parents))


def _leads_to(parents, root: int):
    """Which joints (J,) bool the root is an ancestor of, itself included."""
    closed = parents.copy()
    closed[root] = root
    return _ancestors(closed) == root


def _in_order(places, parents):
    """The same tree with parents before their children; of the joints that may come next the first one does."""
    order, placed = [], np.zeros(len(parents), dtype=bool)
    while len(order) < len(parents):
        ready = ~placed & ((parents == NO_PARENT) | placed[parents])
        order.append(int(ready.argmax()))
        placed[order[-1]] = True
    rank = np.empty(len(parents), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return places[order], np.where(parents[order] == NO_PARENT, NO_PARENT, rank[parents[order]])


def _merge(places, parents):
    """One joint for every place, the first one there; the others' children go to it. Keeps parents before children."""
    first, kept = {}, []
    number = np.empty(len(parents), dtype=np.int64)
    for joint, place in enumerate(map(tuple, places.tolist())):
        if place not in first:
            first[place] = len(kept)
            kept.append(joint)
        number[joint] = first[place]
    return places[kept], np.where(parents[kept] == NO_PARENT, NO_PARENT, number[parents[kept]])
