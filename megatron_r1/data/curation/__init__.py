"""From files of examples to a training set: what goes, why, and where the rest comes from.

Start at `pipeline.py`. Each step is one file and gives a reason for what it drops.
"""
