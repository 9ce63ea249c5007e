"""Megatron distributed checkpoints with the loop's own state, written so that a kill loses nothing.

Start at `store.py`.
"""
