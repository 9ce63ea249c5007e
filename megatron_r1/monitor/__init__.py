"""Notices reward hacking: a reward that rises without what it stands for.

`signals.py` makes numbers of rollouts, `rules.py` compares them with those of the run's beginning
and names what it sees. Both are pure; `trainers/watch.py` runs them in the loop. A reward model is
a part of the reward like any rule, so any part can be watched as a learned one.
"""
