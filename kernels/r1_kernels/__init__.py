"""Kernels for training a policy, each with the plain PyTorch that defines it.

    module            what
    token_logprobs    log-probabilities and entropies of tokens from hidden states and a head
    logit_rows        the same from logits: what a row of them adds up to, and its gradient
    fp8_blocks        matrices to E4M3 codes with a scale for each tile or block, and back
    grpo_loss         clipped ratio, KL, mask and sums of a policy loss, with their gradient
    moe_permute       tokens to the experts they were routed to, in FP8-sized tiles, and back

A module here documents its functions, checks their inputs and picks who computes them;
`reference/` is the definition; `triton/` has the same functions for GPUs. It needs torch, Triton
only where it runs, and knows nothing of the project around it.
"""
