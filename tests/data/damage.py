"""Random damage to the files of a corpus, for fuzz tests; each function makes another content of a file's bytes."""

import copy
import json
import struct

from megatron_alum.data.shards.files import INDEX_HEADER_BYTES

EXTREMES = (0, 1, -1, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))
ODD_VALUES = (None, -1, 0, 10**30, 1.5, "", "x", [], [1], {}, {"count": "many"}, True)


def damaged_bytes(draw, data):
    """Another content than `data`."""
    kind, changed = draw.randrange(6), bytearray(data)
    at = draw.randrange(len(data))
    if kind == 0:
        changed[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del changed[at:]
    elif kind == 2:
        changed += draw.randbytes(draw.randrange(1, 40))
    elif kind == 3:
        changed[at : at + 16] = draw.randbytes(len(changed[at : at + 16]))
    elif kind == 4:
        other = draw.randrange(len(data))
        changed[at : at + 8], changed[other : other + 8] = changed[other : other + 8], changed[at : at + 8]
    else:
        changed[at : at + 8] = struct.pack("<q", draw.choice(EXTREMES))[: len(changed[at : at + 8])]
    return bytes(changed) if changed != data else bytes(changed) + b"\0"


def damaged_table(draw, data):
    """An index of the right size with one number of its header or its tables set to an extreme."""
    changed = bytearray(data)
    at = draw.choice([9, 17, 18, 26, *range(INDEX_HEADER_BYTES, len(data) - 7, 4)])
    changed[at : at + 8] = struct.pack("<q", draw.choice(EXTREMES))
    return bytes(changed) if changed != data else damaged_bytes(draw, data)


def damaged_manifest(draw, data):
    """A manifest of which one value at any depth is another, or gone."""
    manifest = json.loads(data)
    place = manifest
    while True:
        key = draw.choice(list(place))
        if not (isinstance(place[key], dict) and place[key]) or draw.random() < 0.4:
            break
        place = place[key]
    before = copy.deepcopy(place[key])
    if draw.random() < 0.3:
        del place[key]
    else:
        place[key] = draw.choice([value for value in ODD_VALUES if value != before or type(value) is not type(before)])
    return json.dumps(manifest).encode()
