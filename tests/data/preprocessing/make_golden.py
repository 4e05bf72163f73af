"""Write tests/golden/prep/articles.json: 20 articles of the shared dump as the reader makes them. Read them by eye
first.

    python -m tests.data.preprocessing.make_golden          (add --show to print the articles instead)
"""

import json
import sys

from megatron_alum.data.preprocessing.cleaning import clean_lines
from megatron_alum.data.preprocessing.readers.base import Document
from tests.conftest import SHARED_DATA
from tests.data.preprocessing.test_mediawiki import DUMP, GOLDEN, read, summary


def main() -> None:
    """Every fifth article of the dump, 20 in all."""
    items = read(SHARED_DATA / "wiki" / "dump" / DUMP)
    texts = [item for item in items if isinstance(item, Document)][::5][:20]
    if "--show" in sys.argv:
        for item in texts:
            print(f"##### {item.id}\n" + "\n".join(clean_lines(item.text)))
        return
    golden = {
        "command": "python -m tests.data.preprocessing.make_golden",
        "source": "English Wikipedia, text under CC BY-SA; only the first and last words of each article are kept",
        "articles": {item.id: summary(item.text) for item in texts},
    }
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
