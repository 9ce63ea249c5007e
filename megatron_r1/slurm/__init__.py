"""Slurm jobs from Python: what NeMo-Run renders from a configuration, and what becomes of a job.

Start at `chain.py`. NeMo-Run is imported by `nemo.py` alone.
"""
