"""Which rank holds what. `layout.py` alone reads Megatron-Core's global parallel state."""
