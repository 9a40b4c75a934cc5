"""Closed-form rigid fits (Kabsch 1976), batched."""

from __future__ import annotations

import torch


def rotation_from_covariance(C):
    """Rotations (...,3,3) that maximise tr(R^T C), C = sum of target source^T; never a reflection.

    Where C has rank one or zero the rotation is not determined and one of the maximisers is returned.
    """
    left, _, right = torch.linalg.svd(C)
    sign = torch.where(torch.linalg.det(left @ right) < 0, -1.0, 1.0).to(C.dtype)
    left = torch.cat([left[..., :2], left[..., 2:] * sign[..., None, None]], dim=-1)
    return left @ right


def rotation_exponential(omega):
    """Rotation matrices (...,3,3) of rotation vectors (...,3) in radians (Rodrigues)."""
    angle = omega.norm(dim=-1, keepdim=True)
    small = angle < 1e-8  # below it sin(x)/x is 1 and (1-cos x)/x^2 is 1/2 to double precision
    safe = torch.where(small, torch.ones_like(angle), angle)
    first = torch.where(small, torch.ones_like(angle), safe.sin() / safe)[..., None]
    second = torch.where(small, torch.full_like(angle, 0.5), (1 - safe.cos()) / safe.square())[..., None]
    K = cross_matrix(omega)
    return torch.eye(3, dtype=omega.dtype, device=omega.device) + first * K + second * (K @ K)


def cross_matrix(v):
    """[v]x (...,3,3), so that cross_matrix(v) @ y = v x y."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*v.shape, 3)
