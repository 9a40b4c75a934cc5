"""SPRig: turn an animated mesh sequence into one pose-invariant rig.

This folder is both the Python package `sprig` and the Blender extension; bpy and torch are imported when they are
needed, never here.
"""


def register():
    from . import sprig_blender

    sprig_blender.register(__package__)


def unregister():
    from . import sprig_blender

    sprig_blender.unregister()
