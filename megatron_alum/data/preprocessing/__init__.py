"""From raw text to shards: readers, cleaning, sentences, tokens, in worker processes that may be killed and go on."""
