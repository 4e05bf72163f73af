"""Settings of a preprocessing run: what megatron-alum preprocess takes, what the manifest keeps, what --resume
compares."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_alum.config.places import AnyInput, InputFile, InputFolder, OutputPrefix
from megatron_alum.data.preprocessing.languages import tables


@dataclass(frozen=True)
class InputSettings:
    """What is read."""

    input: tuple[AnyInput, ...]
    """files, folders or globs; gzip, bzip2, xz, zstd and tar are recognised by content, whatever their names"""
    format: Literal[
        "auto", "mediawiki", "wikiextractor", "jsonl", "parquet", "text", "lines", "openwebtext", "stories"
    ] = "auto"
    """format of the input; auto looks at each file. text: documents between blank lines; lines and stories: one
    per line; openwebtext: any tar archive"""
    text_key: str = "text"
    """field (JSONL) or column (parquet) that holds the text"""
    wikitext_cleaner: Literal["fast", "mwparserfromhell"] = "fast"
    """how MediaWiki markup is removed: by the built-in one-pass cleaner or the parser library (about ten times
    slower)"""
    shard_id: int = 0
    """which of --num-shards parts of the input this run takes, from 0 (for job arrays)"""
    num_shards: int = 1
    """number of runs among which the input is divided; merge their outputs in order with megatron-alum merge"""

    def __post_init__(self) -> None:
        if not 0 <= self.shard_id < self.num_shards:
            raise ValueError(
                f"--shard-id must be from 0 to {self.num_shards - 1} (--num-shards - 1), but is {self.shard_id}."
            )


@dataclass(frozen=True)
class TextSettings:
    """How text becomes sentences of token ids."""

    sentence_splitter: Literal["rule", "punkt"] = "rule"
    """rule needs no data; punkt needs --punkt-dir or --train-punkt"""
    punkt_dir: InputFolder | None = None
    """folder of Punkt parameters in nltk's punkt_tab layout (also an nltk_data folder)"""
    language: str = "auto"
    """language of the text, a code such as de or pt-BR: abbreviations, ordinals and first words of sentences, or the
    Punkt parameters of an nltk_data folder; auto: the language stated in a dump, else English"""
    train_punkt: bool = False
    """learn the Punkt parameters from the first 30 million characters of the input, keep them as OUTPUT_PREFIX-punkt"""
    min_document_chars: int = 1
    """a document with fewer characters after cleaning is skipped and counted"""
    deduplicate: bool = False
    """skip a document whose cleaned text was seen before in this run (64-bit BLAKE2b; 16 bytes of memory per
    document)"""
    strict: bool = False
    """end the run at the first broken, empty or badly encoded document instead of counting and skipping (or
    repairing) it"""

    def __post_init__(self) -> None:
        if self.sentence_splitter == "punkt" and (self.punkt_dir is None) == (not self.train_punkt):
            raise ValueError(
                "--sentence-splitter punkt must have --punkt-dir FOLDER or --train-punkt, and not both. "
                "nltk's punkt_tab folder is suitable; nothing is downloaded."
            )
        if self.sentence_splitter == "rule" and (self.punkt_dir is not None or self.train_punkt):
            raise ValueError("--punkt-dir and --train-punkt must go with --sentence-splitter punkt, but it is rule.")
        if not re.fullmatch(r"auto|[A-Za-z]{2,3}([-_]\w+)*", self.language):
            raise ValueError(
                f"--language must be auto or a code of two or three letters (de), but is {self.language} instead. "
                f"There are rules for {', '.join(sorted(tables()))}."
            )
        if self.min_document_chars < 1:
            raise ValueError(f"--min-document-chars must be at least 1, but is {self.min_document_chars} instead.")


@dataclass(frozen=True)
class TokenizerSettings:
    """Which tokenizer makes the ids."""

    vocab_file: AnyInput | None = None
    """vocab.txt of a WordPiece vocabulary, or vocab.json of a byte-level BPE one (with --merge-file)"""
    merge_file: InputFile | None = None
    """merges.txt that belongs to a vocab.json"""
    tokenizer: AnyInput | None = None
    """Hugging Face tokenizer folder, instead of --vocab-file"""
    case: Literal["lower", "keep"] | None = None
    """lower-case the text or keep it; default: the folder's own, or lower when vocab.txt has no upper-case entry"""
    strip_accents: bool | None = None
    """strip accents of every script; default: when lower-casing (WordPiece only), as Google's BERT, but only from Latin
    and Greek letters if the vocabulary has marks of other scripts"""


@dataclass(frozen=True)
class RunSettings:
    """Where the output goes and which resources are used; nothing here changes the result."""

    output_prefix: OutputPrefix
    """path of the output without suffix: OUT makes OUT.bin, OUT.idx, OUT.json and OUT-tokenizer/"""
    workers: int = 0
    """worker processes; 0 means one per core"""
    scheduler: str = "local"
    """local processes, or the address of a Dask scheduler (tcp://host:8786) whose workers see the same files"""
    resume: bool = False
    """continue an interrupted run of the same settings from its last checkpoint"""
    overwrite: bool = False
    """replace a finished output of the same name"""
    checkpoint_mb: int = 64
    """MB of input text between checkpoints of an unfinished run"""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"--workers must be 0 (one per core) or more, but is {self.workers} instead.")
        if self.checkpoint_mb < 0:
            raise ValueError(f"--checkpoint-mb must be 0 (every chunk) or more, but is {self.checkpoint_mb} instead.")
        if self.scheduler != "local" and "://" not in self.scheduler:
            raise ValueError(f"--scheduler must be local or an address like tcp://host:8786, but is {self.scheduler}.")


@dataclass(frozen=True)
class PreprocessSettings:
    """One preprocessing run."""

    inputs: InputSettings
    run: RunSettings
    text: TextSettings = field(default_factory=TextSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)

    def fixed(self) -> dict[str, Any]:
        """The settings that determine the result, for the manifest and for --resume."""
        parts = (self.inputs, self.text, self.tokenizer)
        return {key: value for part in parts for key, value in dataclasses.asdict(part).items()}


def fingerprint(value: Any) -> str:
    """Short SHA-256 of a JSON-like value, equal for equal settings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
