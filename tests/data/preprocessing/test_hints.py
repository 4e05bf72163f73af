"""The commands that refusals print: each, run by a shell as it stands, makes what preprocessing then reads.

File names hold spaces and quotes; compressed files are decompressed by the command. Commands whose program is not on
the machine are skipped.
"""

import bz2
import gzip
import io
import json
import lzma
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import zstandard
from charset_normalizer.constant import IANA_SUPPORTED

from megatron_alum.data.preprocessing.readers.base import Unreadable
from megatron_alum.data.preprocessing.readers.encodings import NOT_IN_ICONV, iconv_name
from megatron_alum.data.preprocessing.readers.sniff import check_bytes
from megatron_alum.data.tokenizers.tokenizer import load_tokenizer
from tests.data.preprocessing.corpora import prepare, sentences_of

TEXTS = ["The cat sat. It ran.", "A dog sat."]
READ = [["the cat sat .", "it ran ."], ["a dog sat ."]]
ROWS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
PLAIN = "\n\n".join(TEXTS) + "\n"
LATIN = PLAIN + "\n" + "Die Stra\u00dfe f\u00fchrt \u00fcber die Br\u00fccke nach K\u00f6ln. " * 3 + "\n"


def array(**options):
    return json.dumps(ROWS, **options).encode()


def table(delimiter):
    return "".join(delimiter.join(row) + "\n" for row in [["id", "text"], ["1", TEXTS[0]], ["2", TEXTS[1]]]).encode()


def zipped():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.txt", PLAIN)
    return packed.getvalue()


def lzw(data):
    """The format of the old compress program: codes of nine bits, every character its own."""
    bits = sum(code << 9 * i for i, code in enumerate(data))
    return b"\x1f\x9d\x90" + bits.to_bytes((9 * len(data) + 7) // 8, "little")


# name, bytes, documents after the command (the German one is the third)
CASES = [
    ("my corpus.json", array(), 2),
    ("it's $HOME.json", array(indent=1), 2),
    ("a.json.gz", gzip.compress(array()), 2),
    ("a.json.bz2", bz2.compress(array(indent=2)), 2),
    ("noext", lzma.compress(array()), 2),
    ("a.jsonl", "".join(map(json.dumps, ROWS)).encode(), 2),
    ("a.jsonl.zst", zstandard.compress(",\n".join(map(json.dumps, ROWS)).encode()), 2),
    ("pretty.json", "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(), 2),
    ("strings.json", json.dumps(TEXTS).encode(), 2),
    ("nested.json.gz", gzip.compress(json.dumps({"version": 1, "my data": ROWS}).encode()), 2),
    ("by_id.json", json.dumps({row["id"]: row for row in ROWS}, indent=1).encode(), 2),
    ("my table.csv", b"\xef\xbb\xbf" + table(","), 2),
    ("it's.tsv.gz", gzip.compress(table("\t")), 2),
    ("semi;colon.csv", table(";"), 2),
    ("bare.csv", "".join(f'{i},"{text}"\n' for i, text in enumerate(TEXTS)).encode(), 2),
    ("wide.txt", PLAIN.encode("utf-16"), 2),
    ("wide.jsonl.zst", zstandard.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode("utf-32")), 2),
    ("utf16", PLAIN.encode("utf-16-le"), 2),
    ("old text.txt", LATIN.encode("latin-1"), 3),
    ("old.txt.xz", lzma.compress(LATIN.encode("latin-1")), 3),
    ("mac.txt.gz", gzip.compress(PLAIN.replace("\n", "\r").encode()), 2),
    ("my archive.zip", zipped(), 2),
    ("old.txt.lzma", lzma.compress((PLAIN + "\n").encode() * 3, format=lzma.FORMAT_ALONE), 6),
    ("old.txt.Z", lzw(PLAIN.encode()), 2),
    ("old", lzw(PLAIN.encode()), 2),
]


def command_of(message):
    """What stands in the first brackets after the word that tells what to do, brackets within them included."""
    begin = re.search(r"(?:Unpack|Decompress|Convert|Write|Remove)\b[^()]*\(", message).end()
    depth = 1
    for i, character in enumerate(message[begin:]):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return message[begin : begin + i]
    raise AssertionError(message)


def check(folder, name, num_documents):
    """Run the command in the refusal of folder/name, then preprocess what it wrote."""
    before = {path.name for path in folder.iterdir()} | {"vocab.txt"}
    with pytest.raises(ValueError, match="must be text in a known format") as caught:
        prepare(folder, folder / name)
    command = command_of(str(caught.value))
    for program in re.findall(r"(?:^|\| )(\w+)", command):
        if not shutil.which(program):
            pytest.skip(f"{program} is not on this machine")
    subprocess.run(command, shell=True, check=True, cwd=folder, timeout=60, capture_output=True)
    [written] = [path for path in folder.iterdir() if path.name not in before]
    key = "1" if "without a header" in str(caught.value) else "text"
    assert prepare(folder, written, text_key=key)["num_documents"] == num_documents
    documents = sentences_of(folder / "out", load_tokenizer(folder / "out-tokenizer"))
    assert documents[:2] == READ


@pytest.mark.parametrize(("name", "data", "num_documents"), CASES, ids=[row[0] for row in CASES])
def test_the_command_of_a_refusal_helps(tmp_path, name, data, num_documents):
    (tmp_path / name).write_bytes(data)
    check(tmp_path, name, num_documents)


def test_iconv_knows_every_encoding_that_is_guessed():
    """But those of other branches: UTF-16 and ISO-2022 are told by their own signs."""
    if not shutil.which("iconv"):
        pytest.skip("iconv is not on this machine")
    codecs = [name for name in IANA_SUPPORTED if name not in NOT_IN_ICONV and not name.startswith(("utf", "iso2022"))]
    assert len(codecs) > 60
    for name in codecs:
        done = subprocess.run(["iconv", "-f", iconv_name(name), "-t", "UTF-8"], input=b"", capture_output=True)
        assert done.returncode == 0, name


LATIN_TEXTS = [
    line.split("\t")
    for line in Path(__file__).with_name("latin.tsv").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]
"""language, codecs of Python, sentences"""


@pytest.mark.parametrize(("language", "codecs", "text"), LATIN_TEXTS, ids=[row[0] for row in LATIN_TEXTS])
def test_the_encoding_named_gives_the_text_back(tmp_path, language, codecs, text):
    """A wrong name would be followed and change letters without a word."""
    for codec in codecs.split():
        data = (text + "\n").encode(codec) * 3
        with pytest.raises(Unreadable) as caught:
            check_bytes(data, tmp_path / "a.txt")
        name = re.search(r"iconv -f (\S+)", str(caught.value))[1]
        assert data.decode(name) == data.decode(codec), (language, codec, name)


@pytest.mark.parametrize(("program", "make"), [("7z", ["7z", "a"]), ("lz4", ["lz4"]), ("lzip", ["lzip", "-o"])])
def test_the_command_for_what_python_cannot_write(tmp_path, program, make):
    if not shutil.which(program):
        pytest.skip(f"{program} is not on this machine")
    (tmp_path / "a.txt").write_text(PLAIN)
    name = f"my file.{program}"
    order = [name, "a.txt"] if program != "lz4" else ["a.txt", name]
    subprocess.run([*make, *order], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "a.txt").unlink()
    check(tmp_path, name, 2)
