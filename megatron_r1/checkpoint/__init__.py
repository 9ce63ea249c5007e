"""Checkpoints of a run, and the way from and to Hugging Face.

Start at `record.py`: what a checkpoint holds. `store.py` saves and loads in training, so that no
kill loses anything; `hf_import.py` and `hf_export.py` convert, a tensor at a time.
"""
