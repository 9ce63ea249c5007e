"""The whole token loss of GRPO: ratio, clip, KL, mask and sums, with its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from r1_kernels.backend import Backend, takes_triton
from r1_kernels.reference import grpo_loss as reference


def grpo_loss(
    logprobs_T: Tensor,
    logprobs_old_T: Tensor,
    logprobs_ref_T: Tensor | None,
    advantages_T: Tensor,
    weights_T: Tensor,
    mask_T: Tensor,
    *,
    eps_low: float,
    eps_high: float,
    kl_beta: float = 0.0,
    backend: Backend | str = Backend.auto,
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate with a KL penalty, DeepSeekMath (arXiv:2402.03300) Eq. 3; the equation
    stands in `reference.grpo_loss`.

    Args:
        logprobs_T: nats; the only input that carries a gradient. All but the mask are float32, or
            float64.
        logprobs_ref_T: None leaves the penalty out, whatever `kl_beta`.
        weights_T: the share of each token in the step's loss.
        mask_T: bool. What stands at other tokens is never read, and may be NaN.
        eps_low, eps_high: ratios are clipped to [1 - eps_low, 1 + eps_high]; both > 0.
    Returns:
        The loss, and five sums over the tokens of the mask: tokens, clipped ones, ratios, k3 of
        KL(old || policy), k3 of KL(policy || reference). Float32, or float64 for float64.
    Raises:
        ValueError: shapes or dtypes do not fit, or a clip range is not positive.
    """
    if not (eps_low > 0 and eps_high > 0):  # nor a NaN
        raise ValueError(f"eps_low and eps_high must be > 0, got {eps_low} and {eps_high}")
    tensors = dict(
        logprobs_T=logprobs_T,
        logprobs_old_T=logprobs_old_T,
        logprobs_ref_T=logprobs_ref_T,
        advantages_T=advantages_T,
        weights_T=weights_T,
        mask_T=mask_T,
    )
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    if logprobs_T.dim() != 1 or any(shape != shapes["logprobs_T"] for shape in shapes.values()):
        raise ValueError(f"expected vectors of one length, got {shapes}")
    dtypes = {name: tensor.dtype for name, tensor in tensors.items() if tensor is not None}
    numbers = {dtype for name, dtype in dtypes.items() if name != "mask_T"}
    if mask_T.dtype is not torch.bool or numbers not in ({torch.float32}, {torch.float64}):
        raise ValueError(f"mask_T is bool, the rest float32, or float64 all of it; got {dtypes}")
    implementation = reference.grpo_loss
    if takes_triton(backend, logprobs_T):
        from r1_kernels.triton.grpo_loss import grpo_loss as implementation
    return implementation(**tensors, eps_low=eps_low, eps_high=eps_high, kl_beta=kl_beta)
