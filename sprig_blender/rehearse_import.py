"""A rehearsal of an import in a process of its own, so that a damaged file can only bring that process down.

import_sequence runs this file as a script, with the arguments  -- RESULT.json OPERATOR ARGUMENTS-AS-JSON.  RESULT.json
is written last; no such file means that the process crashed. Knows no other module of SPRig, since a script lies
outside the package.
"""

import importlib.util
import json
import os
import sys

import bpy


def main(operator: str, arguments: dict) -> dict:
    """Import into an empty scene and evaluate the first and the last frame.

    Returns {"refused": the importer's words}, or for USD what Blender's importer does not pass on: {"rate": time codes
    per second, "range": first and last one}, each null when unknown.
    """
    bpy.ops.wm.read_factory_settings(use_empty=True)
    group, name = operator.split(".")
    try:
        getattr(getattr(bpy.ops, group), name)(**arguments)
    except RuntimeError as error:
        return {"refused": str(error)}
    scene = bpy.context.scene
    for frame in (scene.frame_start, scene.frame_end):
        scene.frame_set(frame)
    return _stage_timing(arguments["filepath"]) if name == "usd_import" else {}


def _stage_timing(path: str) -> dict:
    """Rate and range of a USD stage, from Pixar's own library; the wheel of bpy 4.2 comes without it."""
    if hasattr(bpy.utils, "expose_bundled_modules"):
        bpy.utils.expose_bundled_modules()
    if importlib.util.find_spec("pxr") is None:
        return {"rate": None, "range": None}
    from pxr import Sdf

    layer = Sdf.Layer.OpenAsAnonymous(path)
    if layer.HasStartTimeCode() and layer.HasEndTimeCode():
        codes = [layer.startTimeCode, layer.endTimeCode]
    else:
        codes = layer.ListAllTimeSamples()
    return {"rate": layer.timeCodesPerSecond, "range": [codes[0], codes[-1]] if codes else None}


if __name__ == "__main__":
    result_file, operator, arguments = sys.argv[-3:]
    result = main(operator, json.loads(arguments))
    with open(result_file, "w", encoding="utf-8") as file:
        json.dump(result, file)
    os._exit(0)  # without Blender's own clean-up, which can crash after a job well done
