"""Tables and plots from the files a run leaves behind (metrics.jsonl, results.jsonl)."""
