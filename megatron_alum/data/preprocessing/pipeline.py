"""Raw corpus in, indexed shards out: one streaming pass of read -> clean -> split -> tokenise -> write.

    settings -> files -> chunks -> (workers: documents -> sentences -> packed ids) -> journal -> OUT.bin .idx .json

The coordinating process cuts files into chunks, hands them out and appends the results in order; everything that takes
time happens in workers. Memory is bounded by the chunks in flight. The output is a function of the inputs and of
`PreprocessSettings.fixed()`: the number of workers, checkpoints and interruptions cannot change a byte of it.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from megatron_alum.config.places import about
from megatron_alum.data.preprocessing.account import OpenAccount
from megatron_alum.data.preprocessing.dedup import HashSet, drop_duplicates
from megatron_alum.data.preprocessing.journal import Journal, State
from megatron_alum.data.preprocessing.manifest import make_manifest
from megatron_alum.data.preprocessing.plan import InputPlan
from megatron_alum.data.preprocessing.progress import Progress
from megatron_alum.data.preprocessing.punkt import find_punkt, train_punkt
from megatron_alum.data.preprocessing.schedulers import map_in_order, num_cores, open_executor
from megatron_alum.data.preprocessing.settings import PreprocessSettings, TokenizerSettings, fingerprint
from megatron_alum.data.preprocessing.worker import WorkSpec, process_chunk
from megatron_alum.data.shards.files import read_manifest, sha256_of, shard_paths
from megatron_alum.data.tokenizers.folder import describe_folder, write_folder
from megatron_alum.data.tokenizers.vocabulary import TokenizerSource
from megatron_alum.data.tokenizers.word_cache import token_dtype

PUNKT_TRAINING_CHARS = 30_000_000
"""Text that --train-punkt learns from: Kiss and Strunk's own corpora have 1 to 5 million words."""


def preprocess(settings: PreprocessSettings, *, show_progress: bool = True) -> dict[str, Any]:
    """Run the whole pipeline; returns the manifest.

    Raises ValueError for wrong settings, broken files, an input without a single document and an account that does
    not balance (`account.py`); then nothing is left that looks finished. After a crash or a kill, OUT.partial holds
    what --resume continues from.
    """
    prefix = settings.run.output_prefix
    manifest_path = shard_paths(prefix)["json"]
    plan = InputPlan(settings.inputs)
    mark = fingerprint({"settings": settings.fixed(), "files": plan.listing()})
    with Journal(prefix, mark, resume=settings.run.resume) as journal:
        try:
            _check_output_is_free(settings, manifest_path, journal)
            if not journal.state.finished:
                _fill(journal, settings, plan, show_progress)
                _close_account(journal.state, plan)
            dtype = None if journal.state.finished else _dtype(journal.tokenizer_dir)
            journal.finish(dtype, lambda folder: make_manifest(folder, journal.state, settings, plan))
        except OpenAccount:
            journal.discard()
            raise
        except BaseException:
            _keep_or_discard(journal)
            raise
    return read_manifest(manifest_path)


def _check_output_is_free(settings: PreprocessSettings, manifest_path: Path, journal: Journal) -> None:
    if manifest_path.exists() and not settings.run.overwrite and not journal.resumed:
        raise ValueError(
            f"`--output-prefix` must name a new corpus, but {manifest_path} exists. "
            "Choose another name, or replace it by --overwrite."
        )


def _keep_or_discard(journal: Journal) -> None:
    """After a failure, keep what a checkpoint refers to and remove the rest."""
    if journal.state.num_documents and journal.has_checkpoint:
        print(f"The progress is kept in {journal.folder}: the same command with --resume continues.", file=sys.stderr)
    else:
        journal.discard()


def _fill(journal: Journal, settings: PreprocessSettings, plan: InputPlan, show_progress: bool) -> None:
    """Process every chunk that is not in the journal yet."""
    if not journal.tokenizer_dir.is_dir():
        _prepare_tokenizer(settings.tokenizer, journal.tokenizer_dir)
    spec = _work_spec(settings, journal, plan)
    seen = HashSet(journal.known_hashes()) if settings.text.deduplicate else None
    state, workers = journal.state, settings.run.workers or num_cores()
    tasks = ((spec, name, chunk) for name, chunk in plan.chunks(state.next_file, state.next_chunk))
    unsaved_bytes = 0
    begin, end = plan.byte_range
    with (
        open_executor(settings.run.scheduler, workers) as (executor, workers),
        Progress(end - begin, show=show_progress) as progress,
    ):
        for (_spec, _name, chunk), result in map_in_order(executor, workers, process_chunk, tasks):
            kept = result if seen is None else drop_duplicates(result, seen)
            interval = plan.interval(chunk)
            journal.append(kept, plan.index_of(chunk), chunk.ordinal + 1, interval)
            progress.advance(interval[1] - begin, documents=len(kept.document_sentences), text_bytes=result.text_bytes)
            unsaved_bytes += result.text_bytes
            if unsaved_bytes >= settings.run.checkpoint_mb * 1_000_000:
                journal.checkpoint()
                unsaved_bytes = 0
    if state.num_documents == 0:
        raise ValueError(_no_documents(state.skipped.counts))


def _close_account(state: State, plan: InputPlan) -> None:
    """Check that every record and every byte of this shard is accounted for.

    The inner boundaries between shards depend on the chunks, which are known to be adjacent; merging checks that
    the shards are adjacent too.
    """
    inputs, account = plan.settings, state.account
    first = 0 if inputs.shard_id == 0 else account.begin
    last = plan.num_bytes if inputs.shard_id == inputs.num_shards - 1 else account.end
    account.close(state.num_documents, state.skipped.total, first=first, last=last)


def _no_documents(skipped: dict[str, int]) -> str:
    found = ", ".join(f"{count} with {reason}" for reason, count in skipped.items()) or "no record of any kind"
    return (
        f"`--input` must hold at least one document with text, but holds none (found: {found}). "
        "Check --format and --input; with --num-shards, use fewer shards."
    )


def _prepare_tokenizer(settings: TokenizerSettings, folder: Path) -> None:
    """Build the tokenizer in `folder`, which gets its name when it is complete."""
    source = TokenizerSource(
        folder=Path(settings.tokenizer) if settings.tokenizer else None,
        vocab_file=Path(settings.vocab_file) if settings.vocab_file else None,
        merge_file=Path(settings.merge_file) if settings.merge_file else None,
        case=settings.case,
        strip_accents=settings.strip_accents,
    )
    temporary = folder.with_name("tokenizer.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with about("--vocab-file" if source.folder is None else "--tokenizer"):
        write_folder(source, temporary)
    temporary.rename(folder)


def _dtype(tokenizer_dir: Path) -> np.dtype:
    return token_dtype(describe_folder(tokenizer_dir)["vocab_size"])


def _work_spec(settings: PreprocessSettings, journal: Journal, plan: InputPlan) -> WorkSpec:
    text = settings.text
    language = None if text.language == "auto" else text.language
    punkt = find_punkt(text.punkt_dir, language or "en") if text.punkt_dir else None
    if text.train_punkt:
        punkt = journal.folder / "punkt"
        if not punkt.is_dir():
            _train_punkt(plan, punkt)
    tokenizer_file = (journal.tokenizer_dir / "tokenizer.json").resolve()
    return WorkSpec(
        tokenizer_file=str(tokenizer_file),
        tokenizer_digest=sha256_of(tokenizer_file),
        punkt_dir=str(punkt.resolve()) if punkt else None,
        reading=plan.options,
        language=language,
        min_document_chars=text.min_document_chars,
        deduplicate=text.deduplicate,
        strict=text.strict,
    )


def _train_punkt(plan: InputPlan, folder: Path) -> None:
    """Learn Punkt parameters from the beginning of the whole input, the same for every --shard-id."""
    temporary = folder.with_name("punkt.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    train_punkt(plan.texts(PUNKT_TRAINING_CHARS), temporary)
    temporary.rename(folder)
