"""From prompts to groups of rollouts. Start at `engine.py`, the protocol; `inprocess.py` decodes
here.
"""
