"""From a store of rigged characters to what the networks see, every step batched in torch on the store's device.

`draw` chooses characters, reshapes their bones, poses them, turns them and samples their surfaces. The anchor of a
clip is any one frame of it, so the input of the networks is the posed mesh and their target the posed joints.

Choices that a reader would question:
* The store is packed (all vertices of all characters in one tensor) and a draw is padded to the largest character in
  it; one character with many vertices then costs memory in the draws that it is in, not in all. Weights are kept as
  the few that are not zero, and spread out when drawn.
* A motion is kept as each joint's linear part and its `slip`, how far the pose pulls the joint off the place where its
  parent carries it (zero where bones only turn). A pose then fits a reshaped skeleton too: turns stay, joints follow.
  The root's travel is left out, because the unit cube takes it away again.
* Reshaping is a linear blend of one affine map per bone, made so that the maps of a joint and its parent agree at the
  joint: the skin stays closed and the joints stay where they were in the body.
* A little room in the cube. Else half of all roots lie at exactly x = 0, and a decoder that is in doubt writes just
  that, because one sure bin is likelier than any of the many where the joint could really be.
* Joints that are each other's twin (same depth, same bone length, same number of joints below) are reshaped alike, so
  that symmetric characters stay so.
* A missing piece is the ball around a random point that holds a given share of the points. A ball of a given radius
  could leave too few, or take nothing.
"""

from __future__ import annotations

import copy
import math
import zlib
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from ..backend.kinematics import linear_blend_skinning
from ..backend.metrics import unit_cube
from ..backend.skeleton.tokens import MOST_JOINTS, encode_batch, order_joints, reorder
from ..backend.skinning.heat import heat_features
from ..backend.surface import face_areas
from .character import Character

ALIKE = 0.01  # of the longest side of the box: bones that differ by less in length can be twins
MOST_WARM = 8  # weights by heat that are kept for a vertex, and for the piece that it is on
SLIVER = 1e-6  # sine of the angle below which a triangle has no normal, as in backend/points.py


@dataclass(frozen=True)
class AugmentConfig:
    """How much is changed; 0 switches a part off. Angles in degrees, lengths in unit cubes, chances per character."""

    clip: float = 0.5  # chance of one of the character's own poses, where it has any
    bend: float = 0.8  # chance of random joint rotations where it is not one of its own poses; else the rest pose
    bend_root: float = 10.0  # largest rotation of a joint, near the root …
    bend_leaf: float = 50.0  # … and at the leaves, in between by how far down its limb the joint is
    shape: float = 0.5  # chance that bones are reshaped
    length: float = 0.3  # by a factor of at most 1.3, at least 1 / 1.3, along the bone …
    thickness: float = 0.3  # … and across it
    mirror: float = 0.5  # chance of x -> -x
    stretch: float = 0.15  # largest change of each axis of the whole, a factor as above
    quarter: float = 0.75  # chance to stay close to the axes: a multiple of 90 degrees about z, as exports have it, …
    jitter: float = 15.0  # … and up to this more or less
    yaw: float = 180.0  # else the largest turn about z
    tilt: float = 10.0  # largest turn about a horizontal axis
    room: float = 0.1  # smaller by up to this, and then anywhere near the middle of the cube
    prune: float = 0.3  # chance that leaves are deleted
    prune_leaf: float = 0.4  # then the chance of each leaf
    prune_rounds: int = 2  # how often: a limb can lose this many joints
    merge: float = 0.0  # chance that joints within limbs are deleted
    merge_joint: float = 0.3  # then the chance of each joint
    noise: float = 0.003  # largest standard deviation of the points, drawn per character
    hole: float = 0.2  # chance of a missing piece
    hole_share: float = 0.3  # largest share of the points in it, below 1

    def __post_init__(self):
        if not 0 <= self.hole_share < 1:
            raise ValueError(f"hole_share should be in [0, 1), is {self.hole_share}")


DEFAULT = AugmentConfig()
OFF = AugmentConfig(**{field.name: 0 for field in fields(AugmentConfig)})  # the rest pose as it is


@dataclass(frozen=True, eq=False)
class Batch:
    """B characters in the frame of the networks, the cube [-0.5, 0.5]^3: the posed mesh's bounding box, unless there is
    `room`, is centred at 0 with longest side 1."""

    points: Tensor  # (B,N,6) float32, positions and unit face normals that point outward
    joints: Tensor  # (B,J,3) float32, parents before children, 0 where not valid
    parents: Tensor  # (B,J) long, -1 for the root and where not valid
    valid: Tensor  # (B,J) bool, the first of each row
    weights: Tensor  # (B,N,J) float32, rows sum to 1 over the valid joints, 0 elsewhere
    heat: Tensor | None  # (B,N,J,2) what heat says of them (`heat_features`), where the store has it
    character: Tensor  # (B,) long, index into the store


class Store:
    """Characters packed into tensors: `names`, `rig_ids` (one per character), and per vertex, face, joint and pose.

    heat: with what heat says of the weights (backend/skinning/heat.py), found once for each character, in one of its
    own poses: heat hardly depends on the pose, and what little it does a network should bear.

    Raises ValueError for no characters, more joints than the tokens can spell, and a mesh without an area.
    """

    def __init__(self, characters: list[Character], heat: bool = False):
        if not characters:
            raise ValueError("a store needs at least one character")
        self.names = [character.name for character in characters]
        self.rig_ids = [character.rig_id for character in characters]
        packed = [_pack(character) for character in characters]
        if heat:
            for one, character in zip(packed, characters, strict=True):
                for kind, values in zip(("own", "piece"), np.moveaxis(_heat(character), 2, 0), strict=True):
                    one[f"{kind}_bone"], one[f"{kind}_heat"] = _strongest(values, MOST_WARM)
        for key in [key for key in packed[0] if key.endswith(("bone", "weight", "heat"))]:
            most = max(one[key].shape[1] for one in packed)
            for one in packed:
                one[key] = np.pad(one[key], ((0, 0), (0, most - one[key].shape[1])))
        joined = {key: torch.from_numpy(np.concatenate([one[key] for one in packed])) for key in packed[0]}
        self.vertices, self.faces = joined["vertices"], joined["faces"]  # (ΣV,3), (ΣM,3) own vertices' indices
        self.bone, self.weight = joined["bone"], joined["weight"]  # (ΣV,K) the joints that move a vertex, how much
        kinds = ("own", "piece") if heat else ()  # of heat: (ΣV,K) joints, and what each has
        self.heat = [(joined[f"{kind}_bone"], joined[f"{kind}_heat"]) for kind in kinds]
        self.joints, self.parents = joined["joints"], joined["parents"]  # (ΣJ,3), (ΣJ), 0 for the root
        self.along = joined["along"]  # (ΣJ,3) unit direction of the bone, 0 where it has none
        self.reach = joined["reach"]  # (ΣJ) 0 at the root, 1 at the leaves
        self.twin = joined["twin"]  # (ΣJ) the first joint that is reshaped alike
        self.linear, self.slip = joined["linear"], joined["slip"]  # (ΣPJ,3,3), (ΣPJ,3)
        self.vertex_count, self.vertex_start = _table([len(one["vertices"]) for one in packed])
        self.face_count, self.face_start = _table([len(one["faces"]) for one in packed])
        self.joint_count, self.joint_start = _table([len(one["joints"]) for one in packed])
        _, self.pose_start = _table([len(one["linear"]) for one in packed])
        self.pose_count = torch.tensor([len(character.motion) for character in characters])
        rigs = {rig: k for k, rig in enumerate(dict.fromkeys(self.rig_ids))}
        rig_of = np.array([rigs[rig] for rig in self.rig_ids])
        self.members = torch.from_numpy(np.argsort(rig_of, kind="stable"))
        self.member_count, self.member_start = _table(np.bincount(rig_of).tolist())

    def __len__(self) -> int:
        return len(self.names)

    @property
    def device(self) -> torch.device:
        return self.vertices.device

    def to(self, device) -> Store:
        """The same characters on another device."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved


def _table(counts) -> tuple[Tensor, Tensor]:
    counts = torch.tensor(counts)
    return counts, counts.cumsum(0) - counts


def _pack(character: Character) -> dict[str, np.ndarray]:
    """One character's rows of the store, in the unit cube of its rest pose."""
    count = len(character.joints)
    if count > MOST_JOINTS:
        raise ValueError(f"{character.name}: {count} joints, tokens can spell {MOST_JOINTS}")
    centre, scale = unit_cube(character.vertices)
    if not scale > 0 or not face_areas(character.vertices, character.faces).sum() > 0:
        raise ValueError(f"{character.name}: the rest pose has no area")
    joints = (character.joints - centre) / scale
    parents = np.maximum(character.parents, 0)
    children = [np.flatnonzero(character.parents == j) for j in range(count)]
    span = np.array(
        [(joints[c].mean(axis=0) if len(c) else 2 * joints[j] - joints[parents[j]]) for j, c in enumerate(children)]
    )
    span -= joints
    length = np.linalg.norm(span, axis=1)
    below, height, depth = np.ones(count), np.zeros(count), np.zeros(count)
    for j in range(1, count):
        depth[j] = depth[parents[j]] + 1
    for j in range(count - 1, 0, -1):
        below[parents[j]] += below[j]
        height[parents[j]] = max(height[parents[j]], height[j] + 1)
    alike = (depth == depth[:, None]) & (below == below[:, None]) & (np.abs(length - length[:, None]) < ALIKE)

    bone, weight = _strongest(character.weights, count)
    motion = character.motion[..., :3, :].astype(np.float64)
    positions = np.column_stack([character.joints, np.ones(count)])
    own, carried = (np.einsum("pjab,jb->pja", maps, positions) for maps in (motion, motion[:, parents]))
    return {
        "vertices": ((character.vertices - centre) / scale).astype(np.float32),
        "faces": character.faces,
        "bone": bone,
        "weight": weight,
        "joints": joints.astype(np.float32),
        "parents": parents.astype(np.int64),
        "along": (span / np.where(length > 0, length, 1)[:, None]).astype(np.float32),
        "reach": (depth / np.maximum(depth + height, 1)).astype(np.float32),
        "twin": alike.argmax(axis=1),
        "linear": motion[..., :3].reshape(-1, 3, 3).astype(np.float32),
        "slip": ((own - carried) / scale).reshape(-1, 3).astype(np.float32),  # 0 for the root, its own parent here
    }


def _strongest(weights, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The joints (V,K) int16 that move each vertex, and their weights (V,K) float32; K as needed, up to `most`."""
    count = max(1, min(most, int((weights > 0).sum(axis=1).max())))
    bone = np.argsort(-weights, axis=1, kind="stable")[:, :count]
    weight = np.take_along_axis(weights, bone, axis=1)
    return bone.astype(np.int16), (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


def _heat(character: Character) -> np.ndarray:
    """What heat says (V,J,2) in a pose of the character's own, the same one every time, or at rest."""
    motion = np.tile(np.eye(4), (len(character.joints), 1, 1))
    if len(character.motion):
        motion = character.motion[zlib.crc32(character.name.encode()) % len(character.motion)].astype(np.float64)
    vertices = linear_blend_skinning(character.vertices, character.weights, motion)
    joints = np.einsum("jik,jk->ji", motion[:, :3, :3], character.joints) + motion[:, :3, 3]
    return heat_features(vertices, character.faces, joints, character.parents)


# ---- drawing


@torch.no_grad()
def draw(
    store: Store, count: int, generator: torch.Generator, points: int = 2048, config: AugmentConfig = DEFAULT
) -> Batch:
    """`count` characters with `points` surface points each; the same for a generator in the same state.

    First a rig_id is drawn, then one of its characters: a rig with many files counts once. The generator is on the
    store's device. Raises ValueError when it is not.
    """
    if generator.device != store.device:
        raise ValueError(f"the generator is on {generator.device}, the store on {store.device}")

    def random(*shape):  # uniform in [0, 1)
        return torch.rand(shape, generator=generator, device=store.device)

    rig = _index(random(count), torch.full((count,), len(store.member_count), device=store.device))
    chosen = store.members[store.member_start[rig] + _index(random(count), store.member_count[rig])]
    vertex, _ = _rows(store.vertex_start[chosen], store.vertex_count[chosen])
    face, real = _rows(store.face_start[chosen], store.face_count[chosen])
    joint, valid = _rows(store.joint_start[chosen], store.joint_count[chosen])
    vertices, faces, joints, parents = (
        store.vertices[vertex],
        store.faces[face].long(),
        store.joints[joint],
        store.parents[joint] * valid,
    )
    at_joints = [  # (B,V,J) each: the artist's weights, then what heat says
        torch.zeros(*vertex.shape, joint.shape[1], device=store.device).scatter_add_(
            2, bone[vertex].long(), part[vertex]
        )
        for bone, part in [(store.bone, store.weight), *store.heat]
    ]
    weights = at_joints[0]

    # bones
    linear = _bone_scales(store.along[joint], store.twin[joint] * valid, random, config)
    vertices, joints = _carry(vertices, weights, joints, parents, linear, torch.zeros_like(joints))
    linear, slip = _poses(store, chosen, parents, store.reach[joint], random, config)
    vertices, joints = _carry(vertices, weights, joints, parents, linear, slip)

    # the whole, and the unit cube
    mirror = torch.where(random(count) < config.mirror, -1.0, 1.0)
    whole = _whole(mirror, random, config)
    vertices, joints = vertices @ whole.mT, joints @ whole.mT
    low, high = vertices.amin(dim=1, keepdim=True), vertices.amax(dim=1, keepdim=True)
    side = (high - low).amax(dim=2, keepdim=True)
    scale = (1 - config.room * random(count, 1, 1)) / side
    free = (0.5 - scale * (high - low) / 2).clamp(0, config.room / 2)
    shift = (2 * random(count, 1, 3) - 1) * free
    vertices, joints = (scale * (part - (low + high) / 2) + shift for part in (vertices, joints))

    # the surface
    share = torch.where(random(count) < config.hole, random(count) * config.hole_share, 0.0)
    candidates = math.ceil(points / (1 - config.hole_share)) + 1 if config.hole > 0 else points
    flip = mirror < 0
    faces = torch.where(flip[:, None, None], faces.flip(2), faces)  # a mirrored face is seen from its other side
    corner, place, normal, barycentric = _sample(vertices, faces, real, candidates, random)
    if config.hole > 0:
        kept = _outside_hole(place, share, points, random)
        corner, place, normal, barycentric = (
            value.gather(1, kept[..., None].expand(-1, -1, 3)) for value in (corner, place, normal, barycentric)
        )
    row = torch.arange(count, device=store.device)[:, None]
    at_joints = [sum(barycentric[..., k, None] * part[row, corner[..., k]] for k in range(3)) for part in at_joints]
    noise = torch.randn(count, points, 3, generator=generator, device=store.device)
    place = (place + config.noise * random(count, 1, 1) * noise).clamp(-0.5, 0.5)

    # the skeleton
    joints, parents, valid, (weights, *heat) = _prune(joints, parents, valid, at_joints, random, config)
    weights = weights / weights.sum(dim=2, keepdim=True)
    heat = torch.stack(heat, dim=3) if heat else None
    return Batch(torch.cat([place, normal], dim=2), joints, parents, valid, weights, heat, chosen)


def in_order(batch: Batch) -> Batch:
    """The batch with the joints of every character in the canonical order of the tokens.

    The order depends on where the joints are, so it follows every augmentation; it is found on the CPU.
    """
    joints, parents, valid = (value.cpu().numpy() for value in (batch.joints, batch.parents, batch.valid))
    order = np.tile(np.arange(valid.shape[1]), (len(valid), 1))
    parents = parents.copy()
    for b, count in enumerate(valid.sum(axis=1)):
        order[b, :count] = order_joints(joints[b, :count], parents[b, :count])
        _, parents[b, :count] = reorder(joints[b, :count], parents[b, :count], order[b, :count])
    order, parents = (torch.from_numpy(value).to(batch.joints.device) for value in (order, parents))
    columns = order[:, None].expand(-1, batch.weights.shape[1], -1)
    return replace(
        batch,
        joints=batch.joints.gather(1, order[..., None].expand(-1, -1, 3)),
        parents=parents,
        weights=batch.weights.gather(2, columns),
        heat=None if batch.heat is None else batch.heat.gather(2, columns[..., None].expand(-1, -1, -1, 2)),
    )


def to_tokens(batch: Batch) -> Tensor:
    """Ids (B,T) long of the skeletons of a batch `in_order`, BOS … EOS and PAD, on the batch's device."""
    ids = encode_batch(*(value.cpu().numpy() for value in (batch.joints, batch.parents, batch.valid)))
    return torch.from_numpy(ids).to(batch.joints.device)


def in_pieces(batches: list[Batch], size: int) -> list[Batch]:
    """The same characters in batches of up to `size`, those with alike numbers of joints together: less is padding."""
    rows = [(int(count), b, row) for b, batch in enumerate(batches) for row, count in enumerate(batch.valid.sum(1))]
    rows.sort()
    pieces = []
    for start in range(0, len(rows), size):
        piece = rows[start : start + size]
        most = piece[-1][0]
        names = [name for name, value in vars(batches[0]).items() if value is not None]
        parts = {name: [getattr(batches[b], name)[row] for _, b, row in piece] for name in names}
        parts["joints"] = [pad(joints[:most], (0, 0, 0, most - len(joints[:most]))) for joints in parts["joints"]]
        parts["parents"] = [pad(one[:most], (0, most - len(one[:most])), value=-1) for one in parts["parents"]]
        parts["valid"] = [pad(one[:most], (0, most - len(one[:most]))) for one in parts["valid"]]
        for name in {"weights", "heat"} & set(names):
            parts[name] = [
                pad(one[:, :most], (0, 0) * (one.ndim - 2) + (0, most - one[:, :most].shape[1])) for one in parts[name]
            ]
        pieces.append(Batch(**({"heat": None} | {name: torch.stack(values) for name, values in parts.items()})))
    return pieces


def _index(uniform, count):
    """Whole numbers (B,) below count (B,) of uniform numbers in [0, 1)."""
    return (uniform * count).long().minimum(count - 1)


def _rows(start, count):
    """Rows (B,most) of the packed tensors, the last one again as padding, and which are not padding."""
    place = torch.arange(int(count.max()), device=start.device)
    return start[:, None] + place.minimum(count[:, None] - 1), place < count[:, None]


# ---- bones


def _bone_scales(along, twin, random, config):
    """Linear maps (B,J,3,3) that scale along the bones (B,J,3) and across them, twins (B,J) alike."""
    batch, most, _ = along.shape
    here = torch.where(random(batch) < config.shape, 1.0, 0.0)[:, None]
    spread = torch.stack([torch.full_like(here, math.log1p(value)) for value in (config.length, config.thickness)], -1)
    factors = torch.exp(here[..., None] * (2 * random(batch, most, 2) - 1) * spread)
    length, thickness = factors.gather(1, twin[..., None].expand(-1, -1, 2)).unbind(-1)
    unit = torch.eye(3, device=along.device)
    across = thickness[..., None, None] * unit
    return across + (length - thickness)[..., None, None] * along[..., :, None] * along[..., None, :]


def _poses(store, chosen, parents, reach, random, config):
    """Linear maps (B,J,3,3) and slips (B,J,3) of an own pose, of random rotations, or of rest, per character."""
    batch, most = parents.shape
    has = store.pose_count[chosen]
    own = (random(batch) < config.clip) & (has > 0)
    bend = (random(batch) < config.bend) & ~own

    # the strength keeps some poses close to rest, as most frames of a clip are
    limit = torch.deg2rad(config.bend_root + (config.bend_leaf - config.bend_root) * reach)
    angle = limit * random(batch, most) * random(batch, 1) * bend[:, None]
    axis = normalize(2 * random(batch, most, 3) - 1, dim=2)
    angle[:, 0] = 0  # yaw and tilt turn the root
    turn, above = _rotation(axis * angle[..., None]), parents
    for _ in range(most.bit_length()):  # each round doubles how many joints up the chain are included
        turn = turn.gather(1, above[..., None, None].expand(-1, -1, 3, 3)) @ turn
        above = above.gather(1, above)

    slip = torch.zeros(batch, most, 3, device=reach.device)
    pose = _index(random(batch), has.clamp(min=1))
    if bool(own.any()):
        count = store.joint_count[chosen]
        rows, _ = _rows((store.pose_start[chosen] + pose * count) * own, torch.where(own, count, 1))
        rows = pad(rows, (0, most - rows.shape[1]))
        turn = torch.where(own[:, None, None, None], store.linear[rows], turn)
        slip = torch.where(own[:, None, None], store.slip[rows], slip)
    return turn, slip


def _carry(vertices, weights, joints, parents, linear, slip):
    """Vertices (B,V,3) and joints (B,J,3) moved by linear maps (B,J,3,3) about the joints, which stay on their parents.

    moved[j] = moved[parent] + linear[parent] (joints[j] - joints[parent]) + slip[j], the root stays; vertices by linear
    blend skinning with weights (B,V,J).
    """
    over = parents[..., None].expand(-1, -1, 3)
    offset = joints - joints.gather(1, over)
    at_parent = linear.gather(1, parents[..., None, None].expand(-1, -1, 3, 3))
    moved, above = (at_parent @ offset[..., None])[..., 0] + slip, parents
    moved[:, 0] = 0
    for _ in range(joints.shape[1].bit_length()):
        moved = moved + moved.gather(1, above[..., None].expand(-1, -1, 3))
        above = above.gather(1, above)
    moved = moved + joints[:, :1]
    shift = moved - (linear @ joints[..., None])[..., 0]
    maps = torch.cat([linear.flatten(2), shift], dim=2)
    blended = weights @ maps
    turned = blended[..., :9].unflatten(2, (3, 3)) @ vertices[..., None]
    return turned[..., 0] + blended[..., 9:], moved


def _rotation(vector):
    """Rotation matrices (…,3,3) of rotation vectors (…,3) (Rodrigues)."""
    angle = vector.norm(dim=-1)[..., None, None]
    x, y, z = normalize(vector, dim=-1).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return torch.eye(3, device=vector.device) + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)


def _whole(mirror, random, config):
    """Linear maps (B,3,3) of whole characters: mirror, then stretch, then yaw, then tilt."""
    batch = len(mirror)
    stretch = torch.exp((2 * random(batch, 3) - 1) * math.log1p(config.stretch))
    stretch = torch.cat([stretch[:, :1] * mirror[:, None], stretch[:, 1:]], dim=1)
    zero = torch.zeros_like(mirror)
    near = (random(batch) * 4).floor() * 90 + (2 * random(batch) - 1) * config.jitter
    yaw = torch.where(random(batch) < config.quarter, near, (2 * random(batch) - 1) * config.yaw).deg2rad()
    tilt, towards = random(batch) * math.radians(config.tilt), random(batch) * 2 * math.pi
    yaw = _rotation(torch.stack([zero, zero, yaw], dim=1))
    tilt = _rotation(torch.stack([tilt * towards.cos(), tilt * towards.sin(), zero], dim=1))
    return tilt @ yaw @ torch.diag_embed(stretch)


# ---- surface


def _sample(vertices, faces, real, count, random):
    """`count` points, uniform by area: corners (B,N,3) long, positions, unit normals and barycentrics (B,N,3)."""
    batch = len(vertices)
    row = torch.arange(batch, device=vertices.device)[:, None]
    a, b, c = vertices[row[..., None], faces].unbind(2)
    reached = (torch.linalg.cross(b - a, c - a).norm(dim=2) * real).cumsum(dim=1)
    face = torch.searchsorted(reached, random(batch, count) * reached[:, -1:], right=True)
    corner = faces[row, face.minimum(real.sum(dim=1, keepdim=True) - 1)]
    a, b, c = vertices[row[..., None], corner].unbind(2)
    root, second = random(batch, count).sqrt(), random(batch, count)
    barycentric = torch.stack([1 - root, root * (1 - second), root * second], dim=2)
    place = barycentric[..., :1] * a + barycentric[..., 1:2] * b + barycentric[..., 2:] * c
    normal = torch.linalg.cross(normalize(b - a, dim=2), normalize(c - a, dim=2))
    up = torch.tensor([0.0, 0.0, 1.0], device=vertices.device)
    normal = torch.where(normal.norm(dim=2, keepdim=True) > SLIVER, normalize(normal, dim=2), up)
    return corner, place, normal, barycentric


def _outside_hole(place, share, count, random):
    """Indices (B,count) of the first points that are not in the ball with a share (B,) of them around one of them."""
    batch, candidates, _ = place.shape
    middle = _index(random(batch), torch.full((batch,), candidates, device=place.device))
    distance = (place - place[torch.arange(batch, device=place.device), middle][:, None]).norm(dim=2)
    rank = distance.argsort(dim=1, stable=True).argsort(dim=1)
    inside = rank < (share * candidates).floor()[:, None]
    return inside.byte().argsort(dim=1, stable=True)[:, :count]


# ---- skeleton


def _prune(joints, parents, valid, at_joints, random, config):
    """Delete random leaves and random joints within limbs, never the root: what is at them (B,N,J) goes to the parent,
    their children too. As Batch wants them, and the new `at_joints`."""
    batch, most = parents.shape
    every = torch.arange(most, device=parents.device).expand(batch, -1)
    pruned, merged = random(batch, 1) < config.prune, random(batch, 1) < config.merge
    inner = valid & (every > 0)
    drop = torch.zeros_like(valid)
    for _ in range(config.prune_rounds):
        has_child = torch.zeros(batch, most, dtype=torch.long, device=parents.device)
        has_child.scatter_add_(1, parents, (inner & ~drop).long())
        drop = drop | (inner & (has_child == 0) & pruned & (random(batch, most) < config.prune_leaf))
    drop = drop | (inner & merged & (random(batch, most) < config.merge_joint))
    valid, heir = valid & ~drop, torch.where(drop, parents, every)
    for _ in range(most.bit_length()):  # to the next joint up that stays
        heir = heir.gather(1, heir)
    order = (~valid).byte().argsort(dim=1, stable=True)  # those kept, in the order they had
    rank = order.argsort(dim=1)
    kept = int(valid.sum(dim=1).max())
    parents = heir.gather(1, parents)
    parents = rank.gather(1, parents.gather(1, order))[:, :kept]
    joints = joints.gather(1, order[..., None].expand(-1, -1, 3))[:, :kept]
    heir = rank.gather(1, heir)[:, None].expand(-1, at_joints[0].shape[1], -1)
    at_joints = [torch.zeros_like(part).scatter_add_(2, heir, part)[..., :kept] for part in at_joints]
    valid = valid.gather(1, order)[:, :kept]
    parents = torch.where(valid & (every[:, :kept] > 0), parents, -1)
    return joints * valid[..., None], parents, valid, at_joints
