"""Where token ids come from: tokenizers, templates, prompt sources, the synthetic corpus, packing.

Start at `prompts.py`, which turns problems (`problems.py`, from `gym_tasks.py` or `jsonl.py`) into
the `Prompt`s of a run. `packing.py` lays training rows end to end. transformers and reasoning-gym
are imported where they are first used.
"""
