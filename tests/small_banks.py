"""Rig banks of a few characters, as the readers in training/ expect them."""

import csv

import numpy as np


def write_bank(folder, *characters):
    """A bank of these characters; of their categories "machine" and "accessory" are kept, the others follow names."""
    folder.mkdir(exist_ok=True)
    with (folder / "CATALOGUE.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "rig_id", "kind"])
        for character in characters:
            kind = character.category if character.category in ("machine", "accessory") else "character"
            rows.writerow([character.name, character.rig_id, kind])
    for character in characters:
        rest = np.tile(np.eye(4), (len(character.joints), 1, 1))
        rest[:, :3, 3] = character.joints
        np.savez(
            folder / f"{character.name}.npz",
            name=character.name, source=character.source or "a test", licence=character.licence or "none",
            rest_vertices=character.vertices, faces=character.faces, weights=character.weights,
            parents=character.parents, joints_rest=character.joints,
            joint_names=np.array([f"joint_{j}" for j in range(len(character.joints))]),
            bone_rest=rest, pose_world=character.motion @ rest,
        )  # fmt: skip
    return folder
