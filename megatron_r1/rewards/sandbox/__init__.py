"""Runs untrusted programs: no network, no files but their own, no environment, and limits.

Start at `run.py`. `isolation.py` says how a program is shut in, `limits.py` what it may use.
"""
