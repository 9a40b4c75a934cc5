"""SPRig's losses, one function per equation: every frame of a clip should get the rig of its anchor frame.

A student, the network in training, sees each frame; a teacher, the network as it was, has seen the anchor frame alone,
and its skeleton and weights there are constants. Equations (4) and (5) are the two networks themselves: W^t, the
student's weights of frame t, and W*, the teacher's of the anchor. `token_loss`, `geometry_loss` and `skinning_loss`
put the equations together. They return the loss and its terms, not yet weighed and without gradient, for the log; they
work in float32 at least, inside autocast too. Letters: F frames, T tokens, V ids, J joints, B bones, N points.

Where the paper's formulas leave a choice, or we depart from them:
* A bone is the way from a parent to its child, so roots and padding (parent -1) have none. Its inertia is that of two
  equal masses at its ends, whose principal axes are those of their second moments.
* Principal axes leave four rotations; the one that brings the ends of the bones closest, by Chamfer distance, is taken.
  Of those that are equally close (a skeleton may be symmetric) it is the one that brings each end to its own, which is
  known because both skeletons spell the same tokens. The same knowledge fits the rotation (Kabsch) where two moments
  nearly coincide and the axes mean nothing.
* Bones as long as the K-th longest count among the K longest, and weights as large as the k-th largest are in the
  support: left and right are often equal, and the order of the joints should not matter. A weight of zero is in no
  support.
* Directions are compared between bones that have one: those longer than half a bin of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..motion.procrustes import rotation_from_covariance
from ..skeleton.tokens import BINS, FIRST_BIN, PAD, VOCABULARY
from ..skinning.network import TIP

SHORTEST = 0.5 / BINS  # bones up to this length have no direction: quantisation decides it
EQUAL_LENGTHS = 1e-4  # lengths that differ by less, relatively, are equal
COINCIDENT = 0.1  # moments that differ by less, of the largest: an error of 1 % then turns their axes by 0.1
OWN_END = 1e-3  # what the distance between corresponding ends counts, of the Chamfer distance: it decides ties
EPSILON = 1e-8  # least divisor and least argument of a logarithm; a weight or a distance this small is none
EXACT = "donot_use_mm_for_euclid_dist"  # by matrix product near distances drown in rounding


@dataclass(frozen=True)
class LossConfig:
    """Every number in the losses. Only `parent_weight` and `window` are the paper's; the others were lost with its
    formulas; training/LOG.md has the sweep that chose those of the skin."""

    # eqs. 1, 2
    token: float = 1.0  # of L_token beside L_geo
    parent_weight: float = 5.0  # omega of parent tokens; the others have 1
    cross: float = 1.0  # lambda_cross
    # eq. 3
    direction: float = 1.0  # lambda_dir
    length: float = 1.0  # lambda_len
    endpoint: float = 1.0  # lambda_end
    longest: int = 20  # K: so many bones are compared in direction
    straight_through: bool = False  # coordinates of the likeliest bins, with the gradient of the expected ones
    # eqs. 6 to 12
    support: int = 4  # k: so many joints of a point count in full
    residual: float = 0.1  # eps_res: what the others count; at 0.01 half a point's weight leaks to them almost for free
    divergence: float = 3.0  # lambda_kl
    difference: float = 3.0  # lambda_1
    anchor: float = 1.0  # lambda_a
    entropy: float = 0.01  # lambda_e
    prior: float = 0.05  # lambda_g
    sigma: float = 0.03  # of the cube: the prior falls by e over this distance from a bone
    window: int = 3  # frames that the prior is averaged over, odd

    def __post_init__(self):
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"expected an odd window of frames, got {self.window}")


# ---- tokens


def token_loss(logits: Tensor, ids: Tensor, anchor: int, config: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """L_token = L_self + lambda_cross L_cross (SPRig 4.2), and both terms.

    logits (F,T,V) of the student for frames given the teacher's ids of the anchor, (T,) or the same (F,T): row t is
    about the token after ids[t]. anchor: which of the F frames it is.
    """
    with _without_autocast(logits):
        logits, ids = _full_precision(logits), ids.expand(logits.shape[:2])
        others = _others(logits, anchor), _others(ids, anchor)
        terms = {
            "self": self_loss(logits[anchor], ids[anchor], config.parent_weight),
            "cross": cross_loss(*others, config.parent_weight),
        }
        return terms["self"] + config.cross * terms["cross"], _detached(terms)


def self_loss(logits: Tensor, ids: Tensor, parent_weight: float) -> Tensor:
    """L_self = sum_i omega_i CE(student(a, s_<i), s_i) / sum_i omega_i (SPRig eq. 1); logits (T,V), ids (T,)."""
    return _sequence_loss(logits[None], ids[None], parent_weight)[0]


def cross_loss(logits: Tensor, ids: Tensor, parent_weight: float) -> Tensor:
    """L_cross: the mean over frames other than the anchor of what eq. 1 is for the anchor (SPRig eq. 2).

    logits (F,T,V) of those frames, ids (F,T) or (T,) of the anchor. No frame: 0.
    """
    return _mean(_sequence_loss(logits, ids.expand(logits.shape[:2]), parent_weight))


def _sequence_loss(logits, ids, parent_weight):
    """Weighted cross-entropies (F,) of logits (F,T,V) and ids (F,T): omega_i is 1, at parents more, at PAD 0."""
    targets = ids[:, 1:]
    place = torch.arange(1, ids.shape[1], device=ids.device)
    weights = torch.where(place % 4 == 0, parent_weight, 1.0).to(logits.dtype) * (targets != PAD)
    entropy = F.cross_entropy(logits[:, :-1].mT, targets, reduction="none")
    return (weights * entropy).sum(1) / weights.sum(1).clamp_min(EPSILON)


# ---- geometry


def geometry_loss(
    logits: Tensor,
    joints: Tensor,
    parents: Tensor,
    anchor: int,
    config: LossConfig,
    offset: float = 0.5,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_geo = mean_{t != a} (lambda_dir L_dir + lambda_len L_len + lambda_end L_end) (SPRig eq. 3), and its terms.

    logits (F,T,V) as for `token_loss`; joints (J,3) and parents (J,) decoded from the ids of the anchor, -1 for the
    root and for padding; offset as in tokens.py, the network's.
    """
    with _without_autocast(logits):
        logits = _full_precision(_others(logits, anchor))
        projected = project_skeletons(logits, len(parents), offset, config.straight_through)
        terms = compare_skeletons(projected, joints.to(logits.dtype), parents, config.longest)
        loss = config.direction * terms["direction"] + config.length * terms["length"]
        return loss + config.endpoint * terms["endpoint"], _detached(terms)


def project_skeletons(logits: Tensor, count: int, offset: float = 0.5, straight_through: bool = False) -> Tensor:
    """Joints (F,J,3) that logits (F,T,V) expect, J = count: the mean of the bins' values under the soft-max.

    Ids that are no bins are left out. straight_through: the likeliest bins, with the gradient of the mean.
    """
    values = (torch.arange(BINS, dtype=logits.dtype, device=logits.device) + offset) / BINS - 0.5
    bins = logits[:, : 4 * count, FIRST_BIN:VOCABULARY].unflatten(1, (count, 4))[:, :, :3]
    joints = (bins.softmax(-1) * values).sum(-1)
    if straight_through:
        joints = joints + (values[bins.argmax(-1)] - joints).detach()
    return joints


def compare_skeletons(skeletons: Tensor, joints: Tensor, parents: Tensor, longest: int) -> dict[str, Tensor]:
    """L_dir, L_len and L_end of skeletons (F,J,3), after alignment, against the anchor's joints (J,3); parents (J,).

    Without bones or frames all are 0.
    """
    ends, anchor_ends = bone_ends(skeletons, parents), bone_ends(joints, parents)
    if ends.numel() == 0:
        return dict.fromkeys(("direction", "length", "endpoint"), 0 * skeletons.sum())
    rotation, shift = rigid_alignment(ends, anchor_ends)
    ends = (ends.flatten(1, 2) @ rotation.mT + shift[:, None]).view_as(ends)
    return {
        "direction": direction_loss(ends, anchor_ends, longest),
        "length": length_loss(ends, anchor_ends),
        "endpoint": endpoint_loss(ends, anchor_ends),
    }


def bone_ends(joints: Tensor, parents: Tensor) -> Tensor:
    """Heads and tails (...,B,2,3) of the bones of joints (...,J,3), parents (J,), -1 for those that have none."""
    child = (parents >= 0).nonzero()[:, 0]
    return joints[..., torch.stack([parents[child], child], dim=1), :]


@torch.no_grad()
def rigid_alignment(ends: Tensor, anchor_ends: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations R (F,3,3) and shifts s (F,3) that lay bones (F,B,2,3) on the anchor's (B,2,3): R x + s.

    R = V_a S V_t^T, the columns of V being the principal axes and S signs that make R a rotation; centroids coincide.
    Small matrices in float64, so on the CPU, wherever the bones are.
    """
    source, target = ends.flatten(1, 2).cpu().double(), anchor_ends.flatten(0, 1).cpu().double()
    centre, anchor_centre = source.mean(1), target.mean(0)
    source, target = source - centre[:, None], target - anchor_centre
    moments, axes = torch.linalg.eigh(source.mT @ source)
    anchor_moments, anchor_axes = torch.linalg.eigh(target.mT @ target)

    signs = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=source.dtype)
    signs = signs * (torch.linalg.det(axes) * torch.linalg.det(anchor_axes)).sign()[:, None, None]  # (F,4,3)
    rotations = (anchor_axes * signs[:, :, None]) @ axes[:, None].mT  # (F,4,3,3)
    turned = source[:, None] @ rotations.mT  # (F,4,2B,3)
    away = _chamfer(turned, target) + OWN_END * (turned - target).norm(dim=-1).mean(-1)
    by_axes = rotations[torch.arange(len(source)), away.argmin(1)]

    by_ends = rotation_from_covariance(target.mT @ source)
    rotation = torch.where((_coincide(moments) | _coincide(anchor_moments))[:, None, None], by_ends, by_axes)
    shift = anchor_centre - (rotation @ centre[..., None])[..., 0]
    return rotation.to(ends), shift.to(ends)


def direction_loss(ends: Tensor, anchor_ends: Tensor, longest: int) -> Tensor:
    """L_dir = (D(t->a) + D(a->t)) / 2, D(t->a) = mean_{i in E_t} (1 - max_{k in E_a} |d_i . d_k|) (SPRig 4.3).

    ends (F,B,2,3), aligned, anchor_ends (C,2,3); d are unit vectors along the bones, E_t and E_a the `longest` ones.
    """
    (own, counted), (theirs, they_count) = _directions(ends, longest), _directions(anchor_ends, longest)
    alike = (own @ theirs.mT).abs() * (counted[..., None] & they_count)  # (F,B,C)
    there = _mean_where(1 - alike.max(2).values, counted)
    back = _mean_where(1 - alike.max(1).values, they_count)
    return _mean(there + back) / 2


def length_loss(ends: Tensor, anchor_ends: Tensor) -> Tensor:
    """L_len = 1/n sum_{k <= n} |l_t,(k) - l_a,(k)|, lengths in ascending order, n the lesser count (SPRig 4.3).

    ends (F,B,2,3), anchor_ends (C,2,3).
    """
    lengths, anchor_lengths = _along(ends).norm(dim=-1).sort().values, _along(anchor_ends).norm(dim=-1).sort().values
    count = min(lengths.shape[-1], len(anchor_lengths))
    return _mean((lengths[:, :count] - anchor_lengths[:count]).abs().mean(1))


def endpoint_loss(ends: Tensor, anchor_ends: Tensor) -> Tensor:
    """L_end = (CD(P_t, P_a) + CD(P_a, P_t)) / 2, mean distances to the nearest of all heads and tails (SPRig 4.3).

    ends (F,B,2,3), aligned, anchor_ends (C,2,3).
    """
    return _mean(_chamfer(ends.flatten(1, 2), anchor_ends.flatten(0, 1)))


def _chamfer(points, target):
    """Means (...) of the two one-sided Chamfer distances between points (...,P,3) and target (Q,3)."""
    apart = torch.cdist(points, target, compute_mode=EXACT)  # its gradient is 0 where points coincide
    return (apart.min(-1).values.mean(-1) + apart.min(-2).values.mean(-1)) / 2


def _along(ends):
    """Bone vectors (...,B,3) of ends (...,B,2,3)."""
    return ends[..., 1, :] - ends[..., 0, :]


def _directions(ends, longest):
    """Unit vectors (...,B,3) along the bones, and which (...,B) are among the longest and have a direction."""
    along = _along(ends)
    length = along.norm(dim=-1)  # its gradient is 0 at 0
    least = length.topk(min(longest, length.shape[-1])).values[..., -1:]
    counted = (length >= (1 - EQUAL_LENGTHS) * least) & (length > SHORTEST)
    return along / length.clamp_min(SHORTEST)[..., None], counted


def _coincide(moments):
    """Whether two of the moments (...,3), ascending, are too near for their axes to mean anything."""
    return moments.diff(dim=-1).amin(-1) <= COINCIDENT * moments[..., 2]


# ---- skinning


def skinning_loss(
    weights: Tensor,
    target: Tensor,
    prior: Tensor,
    valid: Tensor,
    anchor: int,
    config: LossConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_skin = (lambda_kl L_symKL + lambda_1 L_L1 + lambda_a L_anchor) + (lambda_e L_ent + lambda_g L_prior) (SPRig
    5.3), and its terms.

    weights W^t (F,N,J) of the student, the same points in every frame; target W* (N,J) of the teacher on the anchor;
    prior (F,N,J) of those frames (`geometric_prior`); valid (J,) bool; anchor: which of the F frames it is.
    """
    with _without_autocast(weights):
        weights, target = _full_precision(weights), _full_precision(target)
        mask = support_mask(target, valid, config.support, config.residual)
        taught, found = renormalise(target, mask), renormalise(weights, mask)
        terms = {
            "divergence": divergence_loss(found, taught, mask),
            "difference": difference_loss(found, taught, mask),
            "anchor": anchor_loss(found[anchor], taught, mask),
            "entropy": entropy_loss(weights),
            "prior": prior_loss(weights, prior),
        }
        consistency = config.divergence * terms["divergence"] + config.difference * terms["difference"]
        structure = config.entropy * terms["entropy"] + config.prior * terms["prior"]
        return consistency + config.anchor * terms["anchor"] + structure, _detached(terms)


def support_mask(target: Tensor, valid: Tensor, most: int, residual: float) -> Tensor:
    """M (N,J): 1 for the `most` largest of W* (N,J) above 0, `residual` for other valid joints (J,), 0 for padding."""
    target = target.detach().masked_fill(~valid, 0)
    least = target.topk(min(most, target.shape[1])).values[:, -1:]
    supported = (target >= least) & (target > 0)
    return torch.full_like(target, residual).masked_fill(supported, 1) * valid


def renormalise(weights: Tensor, mask: Tensor) -> Tensor:
    """R_M(W) = (W * M) / (sum_j W * M + eps) (SPRig eq. 6); weights (...,N,J), mask (N,J)."""
    masked = weights * mask
    return masked / (masked.sum(-1, keepdim=True) + EPSILON)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """<X>_M = sum_nj M X / sum_nj M (SPRig eq. 7): (...) of values (...,N,J), mask (N,J); 0 where the mask is empty."""
    return (mask * values).sum((-2, -1)) / mask.sum().clamp_min(EPSILON)


def divergence_loss(found: Tensor, taught: Tensor, mask: Tensor) -> Tensor:
    """L_symKL = mean_t < [P log(P/Q^t) + Q^t log(Q^t/P)] / 2 >_M, logarithms of max(., eps) (SPRig eq. 8).

    found Q^t (F,N,J) and taught P (N,J), renormalised; mask (N,J). The bracket is (P - Q)(log P - log Q).
    """
    ratio = taught.clamp_min(EPSILON).log() - found.clamp_min(EPSILON).log()
    return _mean(masked_mean((taught - found) * ratio / 2, mask))


def difference_loss(found: Tensor, taught: Tensor, mask: Tensor) -> Tensor:
    """L_L1 = mean_t < |Q^t - P| >_M (SPRig eq. 9); shapes as for eq. 8."""
    return _mean(masked_mean((found - taught).abs(), mask))


def anchor_loss(found: Tensor, taught: Tensor, mask: Tensor) -> Tensor:
    """L_anchor = < |Q^a - P| >_M (SPRig eq. 10); found Q^a (N,J) on the anchor, taught P (N,J), mask (N,J)."""
    return masked_mean((found - taught).abs(), mask)


def entropy_loss(weights: Tensor) -> Tensor:
    """L_ent = - mean_t mean_n sum_j W log(W + eps) (SPRig eq. 11); weights W^t (F,N,J), 0 for padding."""
    return -(weights * (weights + EPSILON).log()).sum(-1).mean()


def prior_loss(weights: Tensor, prior: Tensor) -> Tensor:
    """L_prior = mean_t mean_n sum_j |W^t - g^t| (SPRig eq. 12); weights W^t and prior g^t (F,N,J), 0 for padding."""
    return (weights - prior).abs().sum(-1).mean()


@torch.no_grad()
def geometric_prior(points: Tensor, joints: Tensor, parents: Tensor, valid: Tensor, config: LossConfig) -> Tensor:
    """The prior (F,N,J) of eq. 12: `proximity` of tracked points (F,N,3) to the posed skeleton, averaged over frames.

    joints (F,J,3) of consecutive frames, in the cube as the points are; parents (J,), -1 for a root and for padding;
    valid (J,) bool.
    """
    return sliding_mean(proximity(bone_distances(points, joints, parents), valid, config.sigma), config.window)


def bone_distances(points: Tensor, joints: Tensor, parents: Tensor) -> Tensor:
    """Distances (F,N,J) of points (F,N,3) from the own bones of each joint (F,J,3); parents (J,), -1 for roots.

    A joint moves what lies around the bones to its children, so those are its own, and the nearest counts; a leaf owns
    a bone on from its own, TIP as long as the one that leads to it. So do heat.py and the skinning network.
    """
    own = torch.arange(len(parents), device=parents.device)
    above = torch.where(parents < 0, own, parents)
    heads = joints[:, above]
    incoming = _segment_distances(points, heads, joints)  # a root's has no length: never nearer than its children's
    nearest = torch.full_like(incoming, torch.inf).scatter_reduce(2, above.expand_as(incoming), incoming, "amin")
    tip = _segment_distances(points, joints, joints + TIP * (joints - heads))
    return torch.where(nearest.isinf(), tip, nearest)


def proximity(distances: Tensor, valid: Tensor, sigma: float) -> Tensor:
    """g = v exp(-d / sigma), rows normalised: (F,N,J) of distances (F,N,J), valid v (J,) bool; 0 for padding."""
    return (-distances / sigma).masked_fill(~valid, torch.finfo(distances.dtype).min).softmax(-1) * valid


def sliding_mean(values: Tensor, window: int) -> Tensor:
    """Means of values (F,...) over `window` frames (odd) around each, fewer at both ends: (F,...)."""
    series = values.flatten(1).T
    means = F.avg_pool1d(series, window, stride=1, padding=window // 2, count_include_pad=False)
    return means.T.reshape(values.shape)


def _segment_distances(points, starts, ends):
    """Distances (F,N,J) of points (F,N,3) from segments between starts and ends (F,J,3)."""
    along, away = (ends - starts)[:, None], points[:, :, None] - starts[:, None]
    share = (away * along).sum(-1) / along.square().sum(-1).clamp_min(EPSILON**2)
    return (away - share.clamp(0, 1)[..., None] * along).norm(dim=-1)


# ---- small things


def _mean(values):
    """Mean of values (F,) of frames; 0 where there is none."""
    return values.sum() / max(len(values), 1)


def _mean_where(values, counted):
    """Means (...) of the counted ones of values (...,B); 0 where none is."""
    return (values * counted).sum(-1) / counted.sum(-1).clamp_min(1)


def _others(values, anchor):
    """All rows of values (F,...) but the anchor's."""
    assert 0 <= anchor < len(values), f"expected an anchor among {len(values)} frames, got {anchor}"
    return torch.cat([values[:anchor], values[anchor + 1 :]])


def _full_precision(values):
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _without_autocast(values):
    """In half precision products would round coordinates to 1/256 and weights below it away."""
    return torch.autocast(values.device.type, enabled=False)


def _detached(terms):
    return {name: value.detach() for name, value in terms.items()}
