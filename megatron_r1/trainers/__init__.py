"""Loops. Start at `rl.py`; `megatron_step.py` is the one place that knows how Megatron scales a
loss.
"""
