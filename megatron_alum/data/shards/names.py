"""Names of what preprocessing and training write beside a corpus, for those who write it and those who must not read it
as text.
"""

PARTIAL_SUFFIX = ".partial"
"""of the folder OUT.partial, the output that is not finished"""
LOCK_FILE = "lock"
"""in that folder, as long as it exists"""
PUNKT_SUFFIX = "-punkt"
"""of the folder OUT-punkt, Punkt parameters learned from the input"""
INDEX_CACHE = "index-cache"
"""folder of the pair indices"""
INVALID_UTF8 = "invalid UTF-8"
"""reason of a repair, as the manifest names it"""
