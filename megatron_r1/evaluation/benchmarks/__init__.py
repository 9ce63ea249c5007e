"""Public benchmark files as problems of ours. Start at `registry.py`; one file for each kind."""
