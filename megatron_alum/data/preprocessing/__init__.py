"""From raw text to shards: readers, cleaning, sentences, tokens, in worker processes; a killed run can be continued."""
