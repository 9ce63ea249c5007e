"""The mathematics of the losses, pure: tensors and one config in, values out.

Start at `grpo.py`; `sft.py` is the same shape with nothing in it. Both need three things: the
log-probability of every token (`logprobs.py`, the only place that shifts by one), a weight for
every token (`reduce.py`) and, for RL, an advantage for every rollout (`advantages.py`) and a
divergence from the reference (`kl.py`). `objective.py` picks the loss that a configuration names,
and docs/objectives.md has all of them in one table.

    on rollouts        grpo.py, cispo.py, kl_penalty.py   with ratios.py, rollout_tokens.py
    with a critic      gae.py, value.py; the policy's is grpo.py
    on pairs, labels   dpo.py, reward_losses.py
    from a teacher     distill.py (logits), sft.py (samples)

*The reduction is a weight per token*, computed once per step from global counts. A loss is then
``sum_t weights_T * loss_T``, and the losses of micro-batches, data-parallel replicas and context
ranks add up to that of the whole step, however the rows were split.
"""
