"""DeepSeek-R1's training system on Megatron-Core. Start at `trainers/rl.py` and `types.py`."""

__version__ = "0.1.0"
