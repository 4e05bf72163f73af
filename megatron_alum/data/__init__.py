"""From raw text to shards, and from shards to micro-batches, in four packages.

`preprocessing` writes shards and `sampling` draws batches from them; both build on `tokenizers` and `shards` and
never import each other. Reading order of `sampling`: rng (random words), pairs (rows of an epoch), index (rows on
disk), epochs and blend (global sample index -> row), sample and masking (row -> tokens), dataset, placement, loader; of
`preprocessing`: readers, cleaning, sentences, worker, pipeline.
"""
