"""Weights under two names: Megatron-Core's in a policy, Hugging Face's in files and engines.

Start at `names.py`, the table of both; `hf_config.py` does the same for a model's configuration.
"""
