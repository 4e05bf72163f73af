"""From shards to batches: which text a sample holds, what is masked, which rank takes it.

All of it is a function of seed and sample index.
"""
