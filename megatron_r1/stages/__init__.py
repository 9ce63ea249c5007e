"""The paper's pipeline, one file per stage. `session.py` holds what all stages build alike."""
