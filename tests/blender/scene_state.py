"""Everything about the open file that reading or a failed import must leave as it was, in a form that compares."""

import bpy


def scene_state() -> dict:
    """Frame, rate, range, mode, what is visible, selected and enabled in every scene, and how many datablocks exist."""
    kinds = [prop.identifier for prop in bpy.data.bl_rna.properties if prop.type == "COLLECTION"]
    return {
        "datablocks": {kind: sorted(block.name_full for block in getattr(bpy.data, kind)) for kind in kinds},
        "mode": bpy.context.mode,
        "scene": bpy.context.scene.name,
        "scenes": {scene.name: _scene(scene) for scene in bpy.data.scenes},
        "objects": {thing.name_full: _object(thing) for thing in bpy.data.objects},
    }


def _scene(scene: bpy.types.Scene) -> dict:
    return {
        "frame": (scene.frame_current, scene.frame_subframe, scene.frame_start, scene.frame_end),
        "rate": (scene.render.fps, scene.render.fps_base),
        "world": scene.world,
        "own objects": [thing.name_full for thing in scene.collection.objects],
        "view layers": {layer.name: _view_layer(layer) for layer in scene.view_layers},
    }


def _view_layer(layer: bpy.types.ViewLayer) -> dict:
    active = layer.objects.active
    return {
        "active": active.name_full if active else None,
        "hidden": sorted(thing.name_full for thing in layer.objects if thing.hide_get(view_layer=layer)),
        "visible": sorted(thing.name_full for thing in layer.objects if thing.visible_get(view_layer=layer)),
        "selected": sorted(thing.name_full for thing in layer.objects if thing.select_get(view_layer=layer)),
        "collections": _collections(layer.layer_collection),
    }


def _collections(layer: bpy.types.LayerCollection) -> list:
    own = (layer.name, layer.exclude, layer.hide_viewport, layer.collection.hide_viewport)
    return [own, [_collections(child) for child in layer.children]]


def _object(thing: bpy.types.Object) -> dict:
    return {
        "hide_viewport": thing.hide_viewport,
        "collections": sorted(collection.name_full for collection in thing.users_collection),
        "modifiers": [(modifier.name, modifier.type, modifier.show_viewport) for modifier in thing.modifiers],
        "place": [tuple(row) for row in thing.matrix_world],
        "users": thing.users,
    }
