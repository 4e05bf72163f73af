"""Tokenizers in and out: a bare vocabulary or a Hugging Face folder in, a checked Hugging Face folder out.

Three kinds are supported, named by the model inside: `wordpiece` (BERT), `bpe` (byte-level, RoBERTa) and `unigram`
(SentencePiece). A pre-training run needs five special tokens (unknown, classifier, separator, pad, mask); every public
function of this file checks them, because transformers silently builds a five-token tokenizer from a wrong argument,
and training with a mask id equal to the unknown id would fail just as silently. Nothing here touches the network.
"""

import zipfile
from pathlib import Path
from typing import Any

from megatron_alum.config.words import not_one_of
from megatron_alum.data.tokenizers.accents import keeps_marks, latin_strip
from megatron_alum.data.tokenizers.bare_vocabulary import has_tokenizer, open_tokenizer
from megatron_alum.data.tokenizers.vocabulary import (
    BERT_SPECIALS,
    MODEL_FILE,
    TokenizerSource,
    read_vocabulary,
    with_files,
)

KINDS = {"WordPiece": "wordpiece", "BPE": "bpe", "Unigram": "unigram"}
ROLES = ("unk_token", "cls_token", "sep_token", "pad_token", "mask_token")


def load_tokenizer(folder: str | Path) -> Any:
    """The fast tokenizer of a Hugging Face folder, offline and checked.

    Returns a transformers PreTrainedTokenizerFast whose unk, cls, sep, pad and mask ids exist, differ from each other
    and lie below len(tokenizer). Raises ValueError when the folder is missing or one of these fails.
    """
    folder = Path(folder)
    if not folder.is_dir():
        remedy = "Give the folder that contains it"
        if not folder.exists():
            remedy = "Give the path of one: nothing is downloaded"
        elif zipfile.is_zipfile(folder):
            remedy = "Unpack it and give its folder"
        elif folder.suffix in (".txt", ".json") and folder.name != MODEL_FILE:
            remedy = f"Give a bare vocabulary by --vocab-file {folder}"
        raise ValueError(f"`{folder}` must be a tokenizer folder, but is not a folder. {remedy}.")
    if not has_tokenizer(folder):
        raise ValueError(f"`{folder}` must be a Hugging Face tokenizer folder, but holds no tokenizer file.")
    try:
        tokenizer = open_tokenizer(folder)
        _check_declared_size(folder, tokenizer)
    except _SizeDiffers:
        raise
    except Exception as error:  # a damaged file can fail anywhere; the tokenizers library raises nothing more specific
        raise ValueError(f"`{folder}` must be a Hugging Face tokenizer folder, but does not load: {error}") from error
    check_special_tokens(tokenizer, str(folder))
    return tokenizer


def make_tokenizer(source: TokenizerSource) -> Any:
    """Build the tokenizer described by `source`; ValueError names what is wrong with it."""
    source = with_files(source)
    if source.folder is not None:
        return _with_case(load_tokenizer(source.folder), source)
    vocabulary = read_vocabulary(source)
    if vocabulary.merges is not None:
        return roberta_tokenizer(vocabulary.entries, vocabulary.merges)
    return wordpiece_tokenizer(vocabulary.entries, lower=vocabulary.lower, accents=vocabulary.strip_accents)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write `tokenizer` as a Hugging Face folder and read it back: all ids must be present."""
    tokenizer.save_pretrained(str(folder))
    again = load_tokenizer(folder)
    assert len(again) == len(tokenizer) and again.mask_token_id == tokenizer.mask_token_id


def check_special_tokens(tokenizer: Any, name: str) -> None:
    """ValueError unless the five special tokens of pre-training have distinct ids in `tokenizer`."""
    ids: dict[int, str] = {}
    size = len(tokenizer)
    for role in ROLES:
        token, token_id = getattr(tokenizer, role), getattr(tokenizer, role + "_id")
        if token is None or token_id is None or not 0 <= token_id < size:
            raise ValueError(
                f"`{role}` of the tokenizer {name} must have an id below {size}, but is {token!r} with id {token_id} "
                "instead. Use a vocabulary for masked language modelling, or train one: megatron-alum train-tokenizer."
            )
        if token_id in ids:
            raise ValueError(
                f"`{role}` of the tokenizer {name} must have an id of its own, but shares id {token_id} with "
                f"{ids[token_id]}. Use a vocabulary made for masked language modelling."
            )
        ids[token_id] = role


def tokenizer_kind(tokenizer: Any) -> str:
    """ "wordpiece", "bpe" or "unigram": decides where words begin (whole-word masking) and how ids are cached."""
    model = type(tokenizer.backend_tokenizer.model).__name__
    if model not in KINDS:
        raise ValueError(not_one_of("The tokenizer model", model, KINDS))
    return KINDS[model]


class _SizeDiffers(ValueError):
    """Says what is wrong already."""


def _check_declared_size(folder: Path, tokenizer: Any) -> None:
    """Compare with tokenizer.json itself: a wrong class name makes transformers build an almost empty tokenizer."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    from tokenizers import Tokenizer

    declared = Tokenizer.from_file(str(path)).get_vocab_size(with_added_tokens=True)
    if declared != len(tokenizer):
        raise _SizeDiffers(
            f"`{folder}` must load with the {declared} entries of its tokenizer.json, but has {len(tokenizer)}. "
            "Its tokenizer_config.json names a class that does not fit."
        )


def bert_tokenizer(vocab: dict[str, int], *, lower: bool, accents: bool | None) -> Any:
    """transformers' BertTokenizer over `vocab`; `accents` = True strips them, None follows `lower`."""
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(vocab=vocab, do_lower_case=lower, strip_accents=accents)
    assert len(tokenizer) == len(vocab), "transformers built another vocabulary than the one given"
    check_special_tokens(tokenizer, "built from the vocabulary")
    return tokenizer


def wordpiece_tokenizer(vocab: dict[str, int], *, lower: bool, accents: bool | None) -> Any:
    """The tokenizer over an uncased or cased WordPiece vocabulary; `accents` = None strips as `accents.py` says."""
    if not (lower and accents is None and keeps_marks(vocab)):
        return bert_tokenizer(vocab, lower=lower, accents=accents)
    from tokenizers import normalizers

    backend = bert_tokenizer(vocab, lower=True, accents=False).backend_tokenizer
    backend.normalizer = normalizers.Sequence([backend.normalizer, *latin_strip()])
    return _fast_tokenizer(backend, do_lower_case=True)


def roberta_tokenizer(vocab: dict[str, int], merges: Any) -> Any:
    """transformers' RobertaTokenizer (byte-level BPE) over `vocab` and `merges`, pairs of symbols in order."""
    from transformers import RobertaTokenizer

    tokenizer = RobertaTokenizer(vocab=vocab, merges=merges)
    assert len(tokenizer) == len(vocab), "transformers built another vocabulary than the one given"
    check_special_tokens(tokenizer, "built from the vocabulary")
    return tokenizer


def unigram_tokenizer(backend: Any) -> Any:
    """transformers' PreTrainedTokenizerFast over a trained unigram `backend` with BERT's special tokens and pairs."""
    from tokenizers import decoders, processors

    cls_token, sep_token = "[CLS]", "[SEP]"
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls_token}:0 $A:0 {sep_token}:0",
        pair=f"{cls_token}:0 $A:0 {sep_token}:0 $B:1 {sep_token}:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in (cls_token, sep_token)],
    )
    return _fast_tokenizer(backend)


def _fast_tokenizer(backend: Any, **options: Any) -> Any:
    """transformers' general class around `backend`, with BERT's special tokens and inputs."""
    from transformers import PreTrainedTokenizerFast

    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), BERT_SPECIALS, strict=True))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names, **options)
    check_special_tokens(tokenizer, "built from the vocabulary")
    return tokenizer


def _with_case(tokenizer: Any, source: TokenizerSource) -> Any:
    """Apply an explicit --case or accent option to a loaded folder: only WordPiece tokenizers can change theirs."""
    if source.case is None and source.strip_accents is None:
        return tokenizer
    if tokenizer_kind(tokenizer) != "wordpiece":
        if source.case == "lower" or source.strip_accents:
            raise ValueError(
                f"`--case` must be keep for the tokenizer folder {source.folder}, but is lower instead: its "
                "vocabulary decides. Train a tokenizer with the case you want with megatron-alum train-tokenizer."
            )
        return tokenizer
    lower = source.case == "lower" if source.case else bool(getattr(tokenizer, "do_lower_case", False))
    return wordpiece_tokenizer(tokenizer.get_vocab(), lower=lower, accents=source.strip_accents)
