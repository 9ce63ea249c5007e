"""CUDA with NCCL, or CPU with gloo. `host.prepare()` comes before the first import of Megatron-
Core.

This package owns everything that is replaced in Megatron-Core or torch; nothing else patches
anything.
"""
