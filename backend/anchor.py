"""The anchor: the frame whose pose the skeleton and the skin weights are made in (SPRig, METHOD 1)."""

from __future__ import annotations

import numpy as np

TIE = 1e-3  # relative: areas this close to the largest tie (a character that only moves rigidly ties everywhere)


def anchor_frame(areas) -> int:
    """The frame of greatest surface area, a 0-based position; areas (F,) as `surface.surface_areas` gives them.

    a = argmax_t A(t). Frames within 0.1 % of the largest area that follow each other around it form a run; of those
    the one nearest the middle of the run is taken, the earlier of two, so that noise does not choose the pose.
    """
    areas = np.asarray(areas, dtype=np.float64)
    best = int(areas.argmax())
    tied = areas >= areas[best] * (1 - TIE)
    gaps = np.flatnonzero(~tied)
    first = int(gaps[gaps < best].max(initial=-1)) + 1
    last = int(gaps[gaps > best].min(initial=len(areas))) - 1
    return (first + last) // 2
