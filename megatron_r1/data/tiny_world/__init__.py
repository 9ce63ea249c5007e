"""A world for a model of a million parameters: all that `experiment=r1_pipeline_tiny` reads.

Two languages, sums, five kinds of everyday requests and four deeds that should be refused. Nothing
in it was written by people or by a language model: every text follows from a grammar and a seed.
Start with `write.py`, which makes the files; docs/tiny_world.md says what the world is good for.
"""
