"""The paper's pipeline, one file per stage. `session.py` holds what all stages build alike.

Start at `dispatch.py`, which runs one stage, and `pipeline.py`, which runs one after another.
"""
