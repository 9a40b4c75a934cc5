"""Everything that knows Blender. Importing this package imports neither bpy nor torch."""


def register(package: str):
    """Register the add-on; `package` is the root package's name (`bl_ext.<repository>.sprig` inside Blender)."""


def unregister():
    """Undo `register`."""
