"""What a resume adopts, prints and refuses: every option of a run, by its kind; options of older versions."""

import functools
import json
import shutil
from pathlib import Path

import pytest

from megatron_alum.checkpoint.folder import FORMAT_VERSION, hash_file, iteration_folder, read_run_config
from megatron_alum.cli.pretrain import options_of_start
from megatron_alum.config.cli import config_to_dict, parse_config
from megatron_alum.config.fields import options_of
from megatron_alum.config.run import RunConfig
from megatron_alum.config.stored import KINDS, Kind
from megatron_alum.training.resume import check_compatible
from megatron_alum.training.state import data_fingerprint
from tests.training.runs import (
    arguments,
    build_synthetic_corpus,
    largest_difference,
    read_rows,
    train_and_keep_stderr,
)

FORMAT_1 = Path(__file__).parents[1] / "golden" / "run_of_format_1"
"""iter_0000003 of a run written by commit 9131dd6, and metrics.jsonl of all 6 iterations as continued by that commit:
arguments() with 1 layer of width 16, seq_length 32, no dropout, ngram masking, alpha 5, normalize, step size 20"""
ANOTHER = {
    Kind.NETWORK: {
        "model_type": "bert",
        "num_layers": 3,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "ffn_hidden_size": 96,
        "max_position_embeddings": 64,
        "first_position": 4,
        "layernorm_epsilon": 1e-6,
    },
    Kind.STATE: {"bf16": True, "fp16": True, "use_distributed_optimizer": True},
    Kind.SCHEDULE: {
        "train_iters": 14,
        "global_batch_size": 16,
        "seed": 4,
        "seq_length": 32,
        "split": "9,1,0",
        "objective": "sop",
        "short_seq_prob": 0.2,
        "masking": "ngram",
        "max_ngram": 2,
        "mask_rate_start": 0.1,
        "mask_rate_end": 0.3,
        "mask_rate_steps": 3,
        "lr_warmup_fraction": 0.1,
        "alum_start_fraction": 0.25,
    },
    Kind.METHOD: {
        "hidden_dropout": 0.2,
        "attention_dropout": 0.3,
        "init_method_std": 0.01,
        "make_vocab_size_divisible_by": 8,
        "alum_ascent": "label",
        "alum_alpha": 3.0,
        "alum_epsilon": 0.1,
        "alum_step_size": 0.5,
        "alum_noise_std": 0.01,
        "alum_num_ascent_steps": 2,
        "alum_projection": "normalized_gradient",
        "alum_perturb": "encoder_input",
        "alum_perturb_layer": 1,
        "alum_dropout": "shared",
        "alum_inner_divergence": "symmetric",
        "alum_inner_reduction": "batch",
        "alum_detach_targets": False,
        "alum_detach_embeddings": True,
        "alum_nsp": False,
        "alum_batch_fraction": 0.5,
        "alum_head_chunk_rows": 3,
        "lr": 0.01,
        "min_lr": 1e-5,
        "weight_decay": 0.1,
        "adam_beta1": 0.8,
        "adam_beta2": 0.98,
        "adam_eps": 1e-8,
        "clip_grad": 0.5,
        "initial_loss_scale": 1024.0,
        "min_loss_scale": 2.0,
        "loss_scale_window": 10,
        "hysteresis": 1,
        "micro_batch_size": 4,
        "eval_interval": 5,
        "eval_iters": 3,
        "max_consecutive_skips": 3,
        "save_interval": 7,
        "keep_last": 5,
        "log_interval": 2,
    },
}
"""a value of each option that belongs to a run other than that of `arguments` and other than the default"""
COMPANIONS = {"first_position": {"model_type": "roberta"}, "alum_perturb_layer": {"alum_perturb": "layer"}}
CASES = [pytest.param(kind, name, value, id=name) for kind, names in ANOTHER.items() for name, value in names.items()]
NOT_KEPT = {"tensor_model_parallel_size": 2, "sampler_threads": 3, "exit_interval": 5, "recompute_granularity": "full"}


def store(root, prefix, **options):
    """A run's folder with a checkpoint of iteration 7 that has no tensors; returns its config.json's content."""
    config = parse_config(RunConfig, arguments(prefix, root, **options))
    content = {
        "format_version": FORMAT_VERSION,
        "iteration": 7,
        "consumed_samples": 56,
        "run": config_to_dict(config),
        "layout": {},
        "data_sha256": data_fingerprint(config, weights=None),
    }
    write_config(iteration_folder(root, 7), content)
    return content


def write_config(folder, content):
    """config.json of a checkpoint, and its SHA-256 in COMPLETE."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    files = json.loads((folder / "COMPLETE").read_text())["files"] if (folder / "COMPLETE").exists() else {}
    files["config.json"] = hash_file(folder / "config.json")
    (folder / "COMPLETE").write_text(json.dumps({"files": files}))


def words(**options):
    """Options as a command line."""
    return [
        word
        for name, value in options.items()
        for word in (
            "--" + name.replace("_", "-"),
            *map(str, value if isinstance(value, list) else [str(value).lower() if value in (True, False) else value]),
        )
    ]


def resumed(root, **given):
    """The configuration of a resume with only these options."""
    return parse_config(RunConfig, words(load=root, save=root, **given), infer=options_of_start)


def notes_of(root, **given):
    """What a resume with these options prints. Raises: its error."""
    folder = iteration_folder(root, 7)
    return check_compatible(resumed(root, **given), read_run_config(folder), folder)


def test_every_option_has_one_kind_and_every_kept_one_a_case():
    options = [option.name for option in options_of(RunConfig)]
    assert sorted(name for names in KINDS.values() for name in names) == sorted(options)
    for kind, names in ANOTHER.items():
        assert set(names) == set(KINDS[kind])
    assert set(NOT_KEPT) <= set(KINDS[Kind.INVOCATION])


@functools.cache
def usual_options(prefix):
    """Every option of the run of `arguments`."""
    return config_to_dict(parse_config(RunConfig, arguments(prefix, "unused")))


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_an_option_that_is_not_given_is_that_of_the_run(prefix, tmp_path, kind, name, value):
    content = store(tmp_path, prefix, **{name: value}, **COMPANIONS.get(name, {}))
    config = config_to_dict(resumed(tmp_path))
    assert config[name] == value != usual_options(prefix)[name]
    owned = {n for k, names in KINDS.items() if k is not Kind.INVOCATION for n in names}
    assert {n: config[n] for n in owned} == {n: content["run"][n] for n in owned}
    assert notes_of(tmp_path) == []


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_an_option_that_is_given_and_differs_is_printed_or_refused(prefix, tmp_path, kind, name, value):
    """And refused without --override-schedule where it changes samples or schedules."""
    store(tmp_path, prefix, **(COMPANIONS.get(name, {}) if kind is Kind.NETWORK else {}))
    given, flag = {name: value, **COMPANIONS.get(name, {})}, "--" + name.replace("_", "-")
    refusal = rf"{flag} must be .* as in .*iter_0000007, but is {value} instead\."
    if kind is Kind.SCHEDULE:
        with pytest.raises(ValueError, match=refusal + " Or pass --override-schedule"):
            notes_of(tmp_path, **given)
    if kind is not Kind.METHOD:
        given["override_schedule"] = True
    if kind in (Kind.METHOD, Kind.SCHEDULE):
        (note,) = [note for note in notes_of(tmp_path, **given) if note.startswith(f"{flag}: ")]
        assert note.endswith(f", {value} from now on") and str(tmp_path / "iter_0000007") in note
    else:
        with pytest.raises(ValueError, match=refusal):
            notes_of(tmp_path, **given)


def test_what_belongs_to_one_invocation_is_not_kept(prefix, tmp_path):
    store(tmp_path, prefix, **NOT_KEPT)
    config = config_to_dict(resumed(tmp_path))
    assert all(config[name] != value for name, value in NOT_KEPT.items())


def test_a_yaml_line_counts_as_given(prefix, tmp_path):
    store(tmp_path / "run", prefix)
    (tmp_path / "run.yaml").write_text("lr: 0.5\nweight-decay: 0.01\n")
    notes = notes_of(tmp_path / "run", config=tmp_path / "run.yaml")
    assert len(notes) == 1 and notes[0].startswith("--lr: 0.001 in ") and notes[0].endswith(", 0.5 from now on")


def test_a_preset_stands_for_its_sizes(prefix, tmp_path):
    store(tmp_path, prefix)
    with pytest.raises(ValueError, match=r"--num-layers must be 2 as in .* but is 4 instead"):
        notes_of(tmp_path, model_size="mini")


def test_two_spellings_of_one_value_do_not_differ(prefix, tmp_path):
    store(tmp_path, prefix)
    assert notes_of(tmp_path, objective="nsp", split="94.9,5,0.1") == []


def test_a_conflict_of_given_and_kept_options_says_where_they_come_from(prefix, tmp_path):
    store(tmp_path, prefix, alum_epsilon=0.1)
    with pytest.raises(ValueError, match=r"--alum-epsilon must be 1e-05 with .* Options that were not given are those"):
        resumed(tmp_path, alum_projection="normalize")


# Older versions.


def format_1(folder, **changes):
    """A copy of the old checkpoint with other stored options."""
    shutil.copytree(FORMAT_1, folder, dirs_exist_ok=True)
    checkpoint = iteration_folder(folder, 3)
    content = json.loads((checkpoint / "config.json").read_text())
    content["run"].update(changes)
    write_config(checkpoint, content)
    return checkpoint


def test_options_of_format_1_are_read_as_that_version_used_them(tmp_path):
    stored = json.loads((FORMAT_1 / "iter_0000003" / "config.json").read_text())
    assert stored["format_version"] == 1 and "alum_inner_reduction" not in stored["run"]
    run = read_run_config(format_1(tmp_path))["run"]
    assert run["alum_inner_reduction"] == "batch" and run["alum_perturb_layer"] is None
    assert (run["alum_projection"], stored["run"]["alum_epsilon"], run["alum_epsilon"]) == ("normalize", 0.05, 1e-5)
    same = set(stored["run"]) - {"alum_epsilon"}
    assert {name: run[name] for name in same} == {name: stored["run"][name] for name in same}


@pytest.mark.parametrize("alpha", [3.0, 0.0])
def test_what_label_ascents_ignored_in_format_1_is_forgotten(tmp_path, alpha):
    format_1(tmp_path, alum_ascent="label", alum_alpha=alpha, alum_head_chunk_rows=5)
    config = resumed(tmp_path).alum
    assert (config.ascent, config.head_chunk_rows, config.alpha) == ("label", 0, 10.0 if alpha else 0.0)


def test_a_removed_value_is_named_and_may_be_replaced(tmp_path):
    format_1(tmp_path, alum_ascent="free")
    with pytest.raises(ValueError, match=r"iter_0000003 was trained with --alum-ascent free, which this version does"):
        resumed(tmp_path)
    assert resumed(tmp_path, alum_ascent="virtual").alum.ascent == "virtual"


def test_a_removed_option_is_reported(tmp_path, monkeypatch):
    build_synthetic_corpus(tmp_path)
    folder = format_1(tmp_path / "run", some_old_option=3)
    config = resumed(tmp_path / "run", data_path=tmp_path / "synthetic")
    notes = check_compatible(config, read_run_config(folder), folder)
    assert notes[0].startswith("WARNING: ") and notes[0].endswith("this version does not have: some_old_option.")


def test_a_later_format_is_refused(prefix, tmp_path):
    content = store(tmp_path, prefix)
    write_config(iteration_folder(tmp_path, 7), {**content, "format_version": FORMAT_VERSION + 1})
    with pytest.raises(ValueError, match=r"`format_version` in .* must be 1 or 2, but is 3 instead"):
        resumed(tmp_path / "iter_0000007")


def test_a_run_of_format_1_continues_as_that_version_continued_it(tmp_path):
    """The mathematics of the old options: its losses, divergences and gradients at iterations 4 to 6."""
    build_synthetic_corpus(tmp_path)
    expected, run = read_rows(FORMAT_1), tmp_path / "run"
    format_1(run)
    given = {"load": run, "save": run, "data_path": tmp_path / "synthetic", "progress_bar": False}
    refused = launch_bare(given)
    assert refused is None
    rows = read_rows(run)
    names = ("lm_loss", "nsp_loss", "alum_kl", "alum_nsp_kl", "grad_norm", "lr", "mask_rate")
    worst = largest_difference(rows, expected, names)
    assert max(worst.values()) < 1e-4, worst
    new = json.loads((run / "iter_0000006" / "config.json").read_text())
    assert (new["format_version"], new["run"]["alum_inner_reduction"], new["consumed_samples"]) == (2, "batch", 48)
    assert "corpus/synthetic is now read from" in Path(f"{run}-stderr-0").read_text()


def launch_bare(given):
    """Train on one rank with only these options; returns its error."""
    from tests.helpers.distributed import run_ranks

    return run_ranks(1, train_and_keep_stderr, words(**given))[0]
