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


def assign(datablock, action):
    """Let an ID be animated by an action of its own, whose only slot is the ID's."""
    datablock.animation_data.action = action
    if hasattr(action, "slots"):
        datablock.animation_data.action_slot = action.slots[0]


def new_strip(datablock, action) -> tuple:
    """A new NLA track of an ID and the strip on it, at the frames of an action whose only slot is the ID's."""
    track = datablock.animation_data.nla_tracks.new()
    strip = track.strips.new(action.name, int(action.frame_range[0]), action)
    if hasattr(action, "slots"):
        strip.action_slot = action.slots[0]
    return track, strip


def new_curve(channels, path: str, index: int, group: str):
    """Add an f-curve to what `channels_for` returned, in the channel group of that name."""
    curve = channels.fcurves.new(path, index=index)
    curve.group = channels.groups.get(group) or channels.groups.new(group)
    return curve


def curves_of(datablock) -> list:
    """The f-curves that animate an ID through its own action (its assigned slot); empty without an action."""
    animation = datablock.animation_data
    if animation is None or animation.action is None:
        return []
    return slot_curves(animation.action, getattr(animation, "action_slot", None))


def slot_curves(action, slot) -> list:
    """The f-curves of one slot of an action; where actions have no slots, all of them."""
    if not hasattr(action, "slots"):
        return list(action.fcurves)
    bags = [strip.channelbag(slot) for layer in action.layers for strip in layer.strips] if slot else []
    return [curve for bag in bags if bag is not None for curve in bag.fcurves]


def action_curves(action) -> list:
    """All f-curves of an action, whatever their slot."""
    if not hasattr(action, "slots"):
        return list(action.fcurves)
    return [
        curve for layer in action.layers for strip in layer.strips for bag in strip.channelbags for curve in bag.fcurves
    ]


def node_input(modifier, identifier: str):
    """Value of an input of a geometry nodes modifier; None where it has none (a geometry socket)."""
    if hasattr(modifier, "properties"):
        return getattr(getattr(modifier.properties.inputs, identifier, None), "value", None)
    return modifier.get(identifier)
