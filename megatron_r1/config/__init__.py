"""Typed configuration: one module per folder of `conf/`, every default in Python.

Start at `run.py` (what a whole run is) and `load.py` (how files and overrides become it).
"""
