"""Rewards by rule: one rule a file, mixed by weight, scored while the policy is decoding.

Start at `registry.py` (which rules there are), then `mix.py` (how parts become a total) and
`scorer.py` (who computes them). Nothing here imports torch: workers must start quickly.
"""
