"""What the user sets in the panel (per scene) and what is remembered of a result (on its armature)."""

import bpy
from bpy.props import BoolProperty, EnumProperty, FloatProperty, IntProperty, PointerProperty, StringProperty
from bpy.types import PropertyGroup

from . import preview


def _begin_with_the_scene(settings, _context) -> None:
    """A range of one's own begins as the scene's, until it is edited."""
    if settings.range_mode == "CUSTOM" and not settings.is_property_set("frame_end"):
        settings.frame_start, settings.frame_end = settings.id_data.frame_start, settings.id_data.frame_end


def _joints_of_the_preview(_settings, _context, _typed):
    """The names to choose from."""
    return preview.current().computed.rig.skeleton.names if preview.current() else ()


def _is_armature(_settings, thing) -> bool:
    """What the pointer to an armature may be set to."""
    return thing.type == "ARMATURE"


class SPRIG_PG_settings(PropertyGroup):
    """The panel's settings, kept with the scene; the defaults are the command line's."""

    range_mode: EnumProperty(
        name="Frames",
        description="Which frames are rigged",
        items=(
            ("SCENE", "Scene", "The scene's frame range"),
            ("CUSTOM", "Custom", "A range of your own"),
        ),
        default="SCENE",
        update=_begin_with_the_scene,
    )
    frame_start: IntProperty(name="Start", description="First frame that is rigged", default=1)
    frame_end: IntProperty(name="End", description="Last frame that is rigged", default=250)
    frame_step: IntProperty(
        name="Step",
        description="Take every n-th frame; the frames between them are interpolated linearly",
        default=1,
        min=1,
        soft_max=10,
    )
    anchor_mode: EnumProperty(
        name="Rest Pose",
        description="The frame whose shape becomes the rest pose, called the anchor",
        items=(
            ("AUTO", "Auto", "The frame of greatest surface area, where the limbs are most spread out"),
            ("FRAME", "Frame", "A frame of your choice, such as a T-pose"),
        ),
        default="AUTO",
    )
    anchor_frame: IntProperty(
        name="Frame",
        description="Frame whose shape becomes the rest pose; it has to be one of the frames read",
        default=1,
    )
    skeleton: EnumProperty(
        name="Skeleton",
        description="Where skeleton and skin weights come from",
        items=(
            ("auto", "Auto", "The networks propose, the motion decides"),
            ("learned", "Learned", "The networks' rig of the rest pose; only its poses are fitted to the motion"),
            ("motion", "Motion", "The motion alone, without networks"),
        ),
        default="auto",
    )
    candidates: IntProperty(
        name="Candidates",
        description="Skeletons that the network proposes, of which the likeliest is taken",
        default=1,
        min=1,
        soft_max=16,
    )
    temperature: FloatProperty(
        name="Temperature",
        description="0: the likeliest skeleton; above: drawn by chance, the higher the more varied",
        default=0.0,
        min=0.0,
        soft_max=1.5,
    )
    checkpoint_skeleton: StringProperty(
        name="Skeleton Network",
        description="File of a skeleton network (SPRig's .safetensors, Puppeteer's .pth); empty for SPRig's own",
        subtype="FILE_PATH",
    )
    checkpoint_skinning: StringProperty(
        name="Skinning Network",
        description="File of a skinning network (SPRig's .safetensors, Puppeteer's .pth); empty for SPRig's own",
        subtype="FILE_PATH",
    )
    finetune_epochs: IntProperty(
        name="Epochs",
        description="How often fine-tuning goes through the frames, at most; it ends when nothing more is gained",
        default=12,
        min=1,
        soft_max=30,
        max=1000,
    )
    joints_mode: EnumProperty(
        name="Joints",
        description="How the number of joints is found",
        items=(
            ("AUTO", "Auto", "As many joints as the tolerance asks for"),
            ("NUMBER", "Number", "A number of your choice"),
        ),
        default="AUTO",
    )
    joints: IntProperty(
        name="Count",
        description="Number of joints; the rig has fewer when the motion does not hold that many",
        default=24,
        min=2,
        soft_max=100,
    )
    tolerance: FloatProperty(
        name="Tolerance",
        description="Error at which no more joints are added, in per cent of the bounding box's diagonal",
        default=0.1,
        min=0.001,
        max=100.0,
        soft_max=1.0,
        step=1,
        precision=3,
        subtype="PERCENTAGE",
    )
    names: EnumProperty(
        name="Names",
        description="What the bones are called; names of other software need a whole humanoid",
        items=(
            ("sprig", "SPRig", "By anatomy where the skeleton shows it, otherwise numbered; for any creature"),
            ("unity", "Unity", "The names of Unity's humanoid avatars"),
            ("unreal", "Unreal", "The names of Unreal Engine 5's mannequins"),
            ("mixamo", "Mixamo", "The names of Mixamo's characters"),
            ("rigify", "Rigify", "The names of Rigify's human metarig"),
        ),
        default="sprig",
    )
    influences: IntProperty(
        name="Influences",
        description="Joints that may move one vertex; game engines expect 4",
        default=4,
        min=1,
        soft_max=8,
    )
    rest_correction: BoolProperty(
        name="Correct Rest Shape",
        description="Let the rest shape move by hundredths of a per cent where all frames agree that it should",
        default=True,
    )
    stretch: BoolProperty(
        name="Allow Stretch",
        description="Key the location of the few bones where rotation alone costs most; otherwise bones only rotate",
        default=False,
    )
    corrective: BoolProperty(
        name="Corrective Shape Keys",
        description="Add what the bones leave over as one shape key per frame, for cloth and faces; makes files large",
        default=False,
    )
    root_motion: EnumProperty(
        name="Root Motion",
        description="What carries the character's horizontal travel; a fitted armature of your own stays as it is",
        items=(
            ("hips", "Hips", "The root joint, as the motion gives it"),
            ("root", "Root Bone", "One more bone, called root, on the ground below the character"),
            ("object", "Object", "The location of the armature itself"),
        ),
        default="hips",
    )
    own_armature: PointerProperty(
        name="Armature",
        description="The armature whose bones are fitted; empty for the one that is active or that moves the mesh",
        type=bpy.types.Object,
        poll=_is_armature,
    )
    fit: EnumProperty(
        name="Fit",
        description="What is found for the armature's bones",
        items=(
            ("both", "Weights and Motion", "Skin weights and keys; locked vertex groups keep their weights"),
            ("weights", "Weights", "Skin weights for the armature's own animation"),
            ("motion", "Motion", "Keys for the weights that the mesh has"),
        ),
        default="both",
    )
    rest_mode: EnumProperty(
        name="Rest Shape",
        description="Which shape of the mesh belongs to the armature's rest pose",
        items=(
            ("BOUND", "As Bound", "The mesh without deformation; it has to be bound to the armature"),
            ("FRAME", "Frame", "The shape of a frame in which the mesh has the armature's rest pose"),
        ),
        default="BOUND",
    )
    rest_frame: IntProperty(
        name="Rest Frame",
        description="Frame in which the mesh has the armature's rest pose; it has to be one of the frames read",
        default=1,
    )
    preview_bones: EnumProperty(
        name="Bones",
        description="How the previewed bones are drawn",
        items=(
            ("STICKS", "Sticks", "As lines that fade from the bone's head to its tail"),
            ("OCTAHEDRA", "Octahedra", "As solid bones"),
            ("NONE", "None", "Not at all"),
        ),
        default="STICKS",
    )
    preview_bone_color: EnumProperty(
        name="Colour",
        description="What the colours of the previewed bones mean",
        items=(
            ("PLAIN", "Plain", "Nothing, all bones are alike"),
            ("CONFIDENCE", "Confidence", "How sure the network was of the joint: light for sure, grey for not known"),
            ("MOTION", "Motion", "How far the joint turns: light for 90° and more, grey where that is not seen"),
        ),
        default="PLAIN",
    )
    preview_surface: EnumProperty(
        name="Surface",
        description="What is drawn on the surface that the previewed rig moves",
        items=(
            ("NONE", "None", "Nothing, only the mesh itself is seen"),
            ("WEIGHTS", "Weights", "The skin weights of a joint, or all joints in colours of their own"),
            ("ERROR", "Error", "How far every vertex is from where the sequence has it on this frame"),
        ),
        default="NONE",
    )
    preview_joint: StringProperty(
        name="Joint",
        description="Joint whose skin weights are drawn; empty for all joints in colours of their own",
        search=_joints_of_the_preview,
    )
    preview_raw: BoolProperty(
        name="Raw Network",
        description="Draw what the network says of each frame by itself, in light blue",
        default=True,
    )
    seed: IntProperty(name="Seed", description="Of every random choice; the same seed gives the same rig", min=0)


class SPRIG_PG_result(PropertyGroup):
    """What is remembered on an object, so that undo, copies and saved files keep it.

    On the armature what the result box shows, on a mesh which student was fine-tuned on it.
    """

    joints: IntProperty(name="Joints", description="Number of bones; 0 on armatures that are not ours")
    vertices: IntProperty(name="Vertices", description="Number of vertices that the rig moves")
    first_frame: IntProperty(name="First Frame", description="First frame that was rigged")
    last_frame: IntProperty(name="Last Frame", description="Last frame that was rigged")
    rmse: FloatProperty(name="RMSE", description="Error over all frames, per cent of the bounding box's diagonal")
    worst_frame: IntProperty(name="Worst Frame", description="The frame with the largest error")
    worst_rmse: FloatProperty(name="Worst RMSE", description="Error of that frame, per cent of the diagonal")
    anchor_frame: IntProperty(name="Rest Pose", description="The frame whose shape is the rest pose")
    seconds: FloatProperty(name="Time", description="Seconds from the button to the rig")
    warnings: StringProperty(name="Warnings", description="What the user should know, one sentence a line")
    checked: BoolProperty(name="Checked", description="Whether the rig was checked for export")
    findings: StringProperty(name="Findings", description="What game engines would stumble over, one sentence a line")
    student: StringProperty(
        name="Student", description="File of the networks that were fine-tuned on this mesh; empty for none"
    )


CLASSES = (SPRIG_PG_settings, SPRIG_PG_result)


def register() -> None:
    bpy.types.Scene.sprig = PointerProperty(type=SPRIG_PG_settings, name="SPRig", description="Settings of SPRig")
    bpy.types.Object.sprig = PointerProperty(type=SPRIG_PG_result, name="SPRig", description="How well the rig replays")


def unregister() -> None:
    del bpy.types.Object.sprig
    del bpy.types.Scene.sprig
