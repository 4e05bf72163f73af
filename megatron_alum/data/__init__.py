"""Text, in four rooms: from raw text to shards, and from shards to micro-batches.

`tokenizers` and `shards` are the ground; `preprocessing` writes shards, `sampling` draws batches from them. The two
never import each other. Reading order of `sampling`: rng (random words), pairs (rows of an epoch), index (rows on
disk), epochs and blend (global sample index -> row), sample and masking (row -> tokens), dataset, placement, loader; of
`preprocessing`: readers, cleaning, sentences, worker, pipeline.
"""
