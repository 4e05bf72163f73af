"""Readers of raw corpora, one format a file: each turns a file into chunks (cheap) and a chunk into documents (the
work).

Reading order: `base.py` (Document, Chunk, the two methods of a reader), `streams.py` (compression), `records.py`
(formats whose records can be cut out of a byte stream), then the formats, `detect.py` (`--format auto`) and
`discover.py` (paths).
"""
