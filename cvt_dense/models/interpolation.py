"""Interpolation along one axis, as a matrix: from values on a grid to places between them."""

# No annotations from __future__ here: torch.jit cannot read them any more once torch.fx has traced a model.

import torch


def axis_weights(offsets: torch.Tensor, lengths: torch.Tensor, grid: int, cubic: bool) -> torch.Tensor:
    """How much each point of a grid counts at each place of an axis that the grid is stretched over.

    Pixels are areas (``align_corners=False``), and beyond the border the grid goes on with its outermost values: what
    ``torch.nn.functional.interpolate`` does without antialiasing. Where the axis is as long as the grid, the matrix is
    the identity.

    Args:
        offsets: ``(L,)``, places on the axis, counted from its start.
        lengths: ``(L,)``, how long the axis is for each of them. Floating point, as are the offsets.
        grid: Points of the grid.
        cubic: By the cubic kernel; otherwise linearly.

    Returns:
        ``(L, grid)``, each row adding up to 1, in the type of ``offsets``.
    """
    cells = torch.arange(-2, grid + 2, device=offsets.device)
    distance = (((offsets + 0.5) * grid / lengths - 0.5)[:, None] - cells).abs()
    if cubic:
        a = -0.75  # as in torch's own bicubic interpolation
        near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
        far = ((distance - 5) * distance + 8) * distance * a - 4 * a
        weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
    else:
        weights = (1 - distance).clamp(min=0)
    points = torch.arange(grid, device=offsets.device)
    outermost = (cells.clamp(0, grid - 1)[:, None] == points).to(weights.dtype)
    return weights @ outermost
