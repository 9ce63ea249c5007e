"""What each row of logits adds up to, and the gradient of its target's log-probability.

    c rows of logits     v columns of the vocabulary on this rank

With z = logits * scale, and the columns from num_valid on at -inf (None: all are valid).
"""

from __future__ import annotations

import torch
from torch import Tensor


def logit_statistics(
    logits_cv: Tensor, columns_c: Tensor, *, scale: float, num_valid: int | None
) -> Tensor:
    """Four rows over these columns alone, float32 or float64.

    The peak is max z; then sum e and -sum e log e, with e = exp(z - peak); then the target's z, or
    -inf where its column is not among these.
    """
    z_cv = _scaled(logits_cv, scale, num_valid)
    owned_c, safe_c = _owned(columns_c, num_columns=z_cv.shape[1])
    target_c = z_cv.gather(1, safe_c[:, None]).squeeze(1).masked_fill(~owned_c, -torch.inf)
    # A rank may hold padding alone: with a finite peak its exponentials are 0, and not NaN.
    peak_c = z_cv.amax(dim=1).clamp(min=torch.finfo(z_cv.dtype).min)
    exp_cv = z_cv.sub_(peak_c[:, None]).exp_()
    return torch.stack([peak_c, exp_cv.sum(1), torch.special.entr(exp_cv).sum(1), target_c])


def logit_gradient(
    logits_cv: Tensor,
    columns_c: Tensor,
    peak_c: Tensor,
    log_sum_c: Tensor,
    grad_c: Tensor,
    *,
    scale: float,
    num_valid: int | None,
) -> Tensor:
    """d (grad . log p(target)) / d logits, in the logits' dtype; they are overwritten.

    (1[v = target] - p_v) * scale * grad          with p_v = exp(z_v - peak - log_sum)
    """
    z_cv = _scaled(logits_cv, scale, num_valid)
    grad_cv = z_cv.sub_(peak_c[:, None]).sub_(log_sum_c[:, None]).exp_().neg_()
    owned_c, safe_c = _owned(columns_c, num_columns=grad_cv.shape[1])
    grad_cv.scatter_add_(1, safe_c[:, None], owned_c[:, None].to(grad_cv.dtype))
    return logits_cv.copy_(grad_cv.mul_(scale * grad_c[:, None]))


def _scaled(logits_cv: Tensor, scale: float, num_valid: int | None) -> Tensor:
    """A copy, float32 at least."""
    z_cv = logits_cv.to(torch.promote_types(logits_cv.dtype, torch.float32)) * scale
    if num_valid is not None:
        z_cv[:, max(num_valid, 0) :] = -torch.inf
    return z_cv


def _owned(columns_c: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
    """Whether each target is among these columns, and a column that is safe to index elsewhere."""
    return (columns_c >= 0) & (columns_c < num_columns), columns_c.clamp(0, num_columns - 1)
