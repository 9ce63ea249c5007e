"""Typed configuration: one module per folder of `conf/`, every default in Python.

Stages, which `conf/stage/` lists, are in `stage.py`, `r1.py`, `sft.py` and `pipeline.py`; what
spans groups is in `checks/`.

Start at `run.py` (what a whole run is) and `load.py` (how files and overrides become it).
"""
