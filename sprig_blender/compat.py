"""What differs between Blender 4.2 and 5.2, behind one name each; decided by features, never by version numbers."""

from __future__ import annotations


def channels_for(action, datablock):
    """Assign `action` to an ID and return what holds the curves that animate it, with `.fcurves` and `.groups`.

    Since Blender 4.4 the curves of each user of an action lie in a slot's channelbag (an action without an assigned
    slot plays nothing, and says nothing); before that they lie in the action itself.
    """
    animation = datablock.animation_data_create()
    animation.action = action
    if not hasattr(action, "slots"):
        return action
    slot = action.slots.new(id_type=datablock.id_type, name=datablock.name)
    animation.action_slot = slot
    layer = action.layers[0] if action.layers else action.layers.new("Layer")
    strip = layer.strips[0] if layer.strips else layer.strips.new(type="KEYFRAME")
    return strip.channelbag(slot, ensure=True)


def new_curve(channels, path: str, index: int, group: str):
    """Add an f-curve to what `channels_for` returned, in the channel group of that name."""
    curve = channels.fcurves.new(path, index=index)
    curve.group = channels.groups.get(group) or channels.groups.new(group)
    return curve


def curves_of(datablock) -> list:
    """The f-curves that animate an ID through its own action (its assigned slot); empty without an action."""
    animation = datablock.animation_data
    action = animation.action if animation else None
    if action is None:
        return []
    if not hasattr(action, "slots"):
        return list(action.fcurves)
    bags = [strip.channelbag(animation.action_slot) for layer in action.layers for strip in layer.strips]
    return [curve for bag in bags if bag is not None for curve in bag.fcurves]
