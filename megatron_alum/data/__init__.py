"""From raw text to micro-batches: readers, cleaning, sentence splitting, tokenizers, shards, sampler, loader.

Reading order of the sampling half: rng (random words), objective (rows of an epoch), index (rows on disk), epochs and
blend (global sample index -> row), sample and masking (row -> tokens), dataset, loader.
"""
