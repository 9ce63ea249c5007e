"""Policies as Megatron-Core models: layer specs, the few layers that it lacks, the weight bank.

Start at `policy.py` (how a model is built and run) and `stream.py` (what a forward pass is given).
"""
