"""The add-on's preferences: the libraries, and where to compute."""

import bpy
from bpy.props import EnumProperty, StringProperty
from bpy.types import AddonPreferences

from . import dependencies, drawing, jobs


def _folder_changed(preferences, _context) -> None:
    dependencies.use_folder(bpy.path.abspath(preferences.libraries_folder))


class SPRigPreferences(AddonPreferences):
    bl_idname = ""  # the root package's name, known at registration

    device: EnumProperty(
        name="Device",
        description="Where the rig is computed",
        items=(
            (
                "auto",
                "Auto",
                "The graphics card when PyTorch can use it, else the processor",
            ),
            ("cpu", "CPU", "The processor"),
            ("cuda", "CUDA", "An NVIDIA card, or an AMD card with a ROCm build of PyTorch"),
            ("mps", "Apple Metal", "The graphics part of an Apple processor"),
        ),
        default="auto",
    )
    build: EnumProperty(
        name="PyTorch for",
        description="What kind of device the PyTorch that Install downloads is made for",
        items=(
            ("CPU", "Processor", "Works everywhere; on macOS also with Metal"),
            ("CUDA", "NVIDIA", "CUDA 13: needs an NVIDIA driver 580 or later; a download of gigabytes"),
            ("ROCM", "AMD", "ROCm 7.1, for Linux: needs AMD's driver; a download of gigabytes"),
        ),
        default="CPU",
    )
    libraries_folder: StringProperty(
        name="Existing Folder",
        description="A folder that already holds torch, scipy and safetensors for this Blender's Python, such as a "
        "site-packages folder; used instead of an installation by SPRig",
        subtype="DIR_PATH",
        update=_folder_changed,
    )

    separate_process: EnumProperty(
        name="Separate Process",
        description="Whether PyTorch runs inside Blender or in a process of Blender's Python beside it",
        items=(
            ("AUTO", "Auto", "Inside Blender; in a separate process where PyTorch does not load in Blender"),
            ("ALWAYS", "Always", "In a separate process, which takes some seconds to start for every rig"),
        ),
        default="AUTO",
    )

    def draw(self, context):
        layout = self.layout
        drawing.draw_libraries(layout, build(context))
        if jobs.running():
            drawing.draw_progress(layout, jobs.running())
        layout.separator()
        column = layout.column()
        column.use_property_split = True
        column.prop(self, "build")
        column.prop(self, "libraries_folder")
        column.prop(self, "device")
        column.prop(self, "separate_process")


def of_this_addon(context) -> "SPRigPreferences | None":
    """Our preferences; None when the add-on was enabled by a script without being added to the user's list."""
    entry = context.preferences.addons.get(SPRigPreferences.bl_idname)
    return entry.preferences if entry else None


def device(context) -> str:
    """The device that the user chose."""
    preferences = of_this_addon(context)
    return preferences.device if preferences else "auto"


def build(context) -> str:
    """Which of `pinned_wheels.builds` the user wants to be installed."""
    preferences = of_this_addon(context)
    return preferences.build.lower() if preferences else "cpu"


def always_separate(context) -> bool:
    """Whether the user wants the backend in a process of its own."""
    preferences = of_this_addon(context)
    return preferences is not None and preferences.separate_process == "ALWAYS"


def libraries_folder(context) -> str:
    """The user's own folder of libraries, empty for none."""
    preferences = of_this_addon(context)
    return bpy.path.abspath(preferences.libraries_folder) if preferences else ""


def register(package: str) -> None:
    SPRigPreferences.bl_idname = package
    bpy.utils.register_class(SPRigPreferences)


def unregister() -> None:
    bpy.utils.unregister_class(SPRigPreferences)
