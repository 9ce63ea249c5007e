"""How good a policy is on problems it has never seen. Start at `runner.py`."""
