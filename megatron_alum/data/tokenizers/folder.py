"""The tokenizer folder of a corpus, written and described by the `tokenizers` library alone.

transformers takes three seconds to import (it brings torch), as long as 40 MB of text take to preprocess, and
preprocessing does not need it: `write_folder` writes the bytes that transformers' own BertTokenizer and
RobertaTokenizer save (the tests compare), and copies folders that have them already. Only a folder that these two
classes did not write goes through transformers.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from megatron_alum.config.words import not_one_of
from megatron_alum.data.tokenizers.accents import keeps_marks
from megatron_alum.data.tokenizers.tokenizer import KINDS, make_tokenizer, save_tokenizer
from megatron_alum.data.tokenizers.vocabulary import (
    BERT_SPECIALS,
    CONFIG_FILE,
    MODEL_FILE,
    ROBERTA_SPECIALS,
    TokenizerSource,
    Vocabulary,
    read_vocabulary,
    require_all_ids,
    with_files,
)

_UNLIMITED = int(1e30)
"""transformers' `model_max_length` for "unknown"."""


def write_folder(source: TokenizerSource, folder: Path) -> None:
    """Write the tokenizer that `source` describes as the Hugging Face folder `folder`, checked.

    Raises: ValueError for unfit vocabularies and folders, naming what is wrong.
    """
    source = with_files(source)
    if source.folder is None:
        vocabulary = read_vocabulary(source)
        if vocabulary.lower and vocabulary.strip_accents is None and keeps_marks(vocabulary.entries):
            return save_tokenizer(make_tokenizer(source), folder)
        backend = _backend(vocabulary)
        folder.mkdir(parents=True)
        backend.save(str(folder / MODEL_FILE))
        (folder / CONFIG_FILE).write_text(_json(_config(vocabulary)), encoding="utf-8")
        return
    if source.case is None and source.strip_accents is None and _is_plain(source.folder):
        folder.mkdir(parents=True)
        for name in (MODEL_FILE, CONFIG_FILE):
            shutil.copyfile(source.folder / name, folder / name)
    else:
        save_tokenizer(make_tokenizer(source), folder)
    require_all_ids(_entries(json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))), source.folder)


def describe_folder(folder: Path) -> dict[str, Any]:
    """What a manifest records about the tokenizer: kind, class, vocab_size, lower_case. `folder` is one of
    `write_folder`."""
    spec, config = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (MODEL_FILE, CONFIG_FILE))
    kind = spec["model"]["type"]
    if kind not in KINDS:
        raise ValueError(not_one_of("The tokenizer model", kind, KINDS))
    return {
        "kind": KINDS[kind],
        "class": config["tokenizer_class"],
        "vocab_size": len(_entries(spec)),
        "lower_case": bool(config.get("do_lower_case", False)),
    }


def _entries(spec: dict[str, Any]) -> dict[str, int]:
    """Token -> id of a tokenizer.json, the added tokens included; a unigram model lists its pieces in id order."""
    pieces = spec["model"]["vocab"]
    if not isinstance(pieces, dict):
        pieces = {piece: number for number, (piece, _score) in enumerate(pieces)}
    return pieces | {token["content"]: token["id"] for token in spec["added_tokens"]}


def _is_plain(folder: Path) -> bool:
    """Whether the folder's two files are what this module would write for its vocabulary."""
    if not all((folder / name).is_file() for name in (MODEL_FILE, CONFIG_FILE)):
        return False
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        spec = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
        entries, merges = spec["model"].pop("vocab"), spec["model"].pop("merges", None)
        specials = BERT_SPECIALS if merges is None else ROBERTA_SPECIALS
        # All but entries and merges is compared, with a tokenizer of the special ones alone: that takes no time.
        vocabulary = Vocabulary(
            entries={token: entries[token] for token in specials},
            merges=None if merges is None else [],
            lower=config.get("do_lower_case", False),
            strip_accents=config.get("strip_accents"),
        )
        own = json.loads(_backend(vocabulary).to_str())
        own["model"].pop("vocab"), own["model"].pop("merges", None)
        return _config(vocabulary) == config and own == spec
    except (ValueError, TypeError, KeyError, AttributeError):  # not written by these classes: left to transformers
        return False


def _backend(vocabulary: Vocabulary) -> Tokenizer:
    return _bert_backend(vocabulary) if vocabulary.merges is None else _roberta_backend(vocabulary)


def _bert_backend(vocabulary: Vocabulary) -> Tokenizer:
    entries = vocabulary.entries
    backend = Tokenizer(models.WordPiece(entries, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=vocabulary.lower, strip_accents=vocabulary.strip_accents, clean_text=True, handle_chinese_chars=True
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, entries[token]) for token in ("[CLS]", "[SEP]")],
    )
    backend.add_special_tokens(sorted(BERT_SPECIALS, key=entries.__getitem__))
    return backend


def _roberta_backend(vocabulary: Vocabulary) -> Tokenizer:
    entries = vocabulary.entries
    try:
        model = models.BPE(vocab=entries, merges=vocabulary.merges, continuing_subword_prefix="", end_of_word_suffix="")
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"`--merge-file` must belong to the vocabulary, but does not: {error}.") from error
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", entries["</s>"]), ("<s>", entries["<s>"]), add_prefix_space=False, trim_offsets=True
    )
    backend.add_special_tokens(sorted(ROBERTA_SPECIALS, key=entries.__getitem__))
    return backend


def _config(vocabulary: Vocabulary) -> dict[str, Any]:
    """tokenizer_config.json as transformers writes it."""
    common: dict[str, Any] = {"backend": "tokenizers", "model_max_length": _UNLIMITED}
    if vocabulary.merges is None:
        pad, unk, cls, sep, mask = BERT_SPECIALS
        common |= {"tokenizer_class": "BertTokenizer", "do_lower_case": vocabulary.lower}
        common |= {"strip_accents": vocabulary.strip_accents, "tokenize_chinese_chars": True}
    else:
        cls, pad, sep, unk, mask = ROBERTA_SPECIALS
        common |= {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False, "trim_offsets": True}
        common |= {"errors": "replace", "bos_token": cls, "eos_token": sep}
    return common | {"pad_token": pad, "unk_token": unk, "cls_token": cls, "sep_token": sep, "mask_token": mask}


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
