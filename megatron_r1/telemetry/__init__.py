"""What a run writes about itself: metrics, curves, sampled rollouts, progress and tables.

Start at `metrics.py`. Nothing here needs torch, Megatron or a GPU; matplotlib and TensorBoard are
imported where they are used.
"""
