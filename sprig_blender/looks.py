"""Colours and the shape of bones, which the preview picture and the overlay in the viewport share."""

from __future__ import annotations

import numpy as np

from ..backend.kinematics import bone_frames

# Dark violet over red to pale yellow: lightness rises evenly, so a picture also reads in grey.
HEAT = ("#2A1E5C", "#6A1F7B", "#A92B70", "#DE4968", "#F8765C", "#FEBB81", "#FCFDBF")
CHROMA = 0.13  # of the joints' colours: strong, and inside sRGB for nearly all hues
SHORTEST_SCALE = 1e-3  # per cent; below this a map of errors would show float32 rounding in glowing colours
WAIST = 0.15  # of a bone's length: there it is thickest
# Faces of head 0, the waist's four corners, and tail 5; seen from outside, corners run anticlockwise.
FACES = np.array([[1, 0, 2], [2, 0, 3], [3, 0, 4], [4, 0, 1], [5, 1, 2], [5, 2, 3], [5, 3, 4], [5, 4, 1]])


def linear(color) -> np.ndarray:
    """Linear RGB (3,) of a hex colour."""
    value = np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def joint_colors(count: int) -> np.ndarray:
    """Linear RGB (J,3): hues a golden angle apart, so that joints next to each other differ, in two lightnesses.

    From OKLCh (Ottosson 2020, "A perceptual color space for image processing"), so all hues look equally strong.
    """
    hue = 2 * np.pi * (0.07 + np.arange(count) * 0.618034)
    lightness = np.where(np.arange(count) % 2, 0.80, 0.68)
    lab = np.stack([lightness, CHROMA * np.cos(hue), CHROMA * np.sin(hue)], axis=1)
    cones = lab @ np.array([[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728],
                            [1, -0.0894841775, -1.2914855480]]).T  # fmt: skip
    rgb = cones**3 @ np.array([[4.0767416621, -3.3077115913, 0.2309699292],
                               [-1.2684380046, 2.6097574011, -0.3413193965],
                               [-0.0041960863, -0.7034186147, 1.7076147010]]).T  # fmt: skip
    return rgb.clip(0.02, 1)


def heat(values) -> np.ndarray:
    """Linear RGB (...,3) of errors, 1 and more being the end of the scale."""
    stops = np.array([linear(color) for color in HEAT])
    place = np.clip(values, 0, 1) * (len(stops) - 1)
    return np.stack([np.interp(place, np.arange(len(stops)), stops[:, c]) for c in range(3)], axis=-1)


def octahedra(heads, tails, width) -> np.ndarray:
    """Faces (J,8,3,3) of bones from heads to tails (J,3), `width` (J,1) from the middle to the waist's edge."""
    frames = bone_frames(heads, tails)
    side, up, waist = width * frames[:, :3, 0], width * frames[:, :3, 2], (1 - WAIST) * heads + WAIST * tails
    return np.stack([heads, waist + up, waist + side, waist - up, waist - side, tails], axis=1)[:, FACES]
