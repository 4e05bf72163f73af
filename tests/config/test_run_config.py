"""The whole configuration of a run: every option documented, unique, stored and read back; checks across sections."""

import pytest

from megatron_alum.config.cli import config_from_dict, config_to_dict, parse_config
from megatron_alum.config.fields import options_of
from megatron_alum.config.run import RunConfig

BASE = ["--data-path", "shards", "--save", "run", "--model-size", "tiny"]
# Names that ARCHITECTURE promises; a lost one is a broken command line.
PROMISED = """num_layers hidden_size num_attention_heads ffn_hidden_size seq_length max_position_embeddings model_type
init_from micro_batch_size global_batch_size train_iters lr min_lr lr_warmup_fraction weight_decay adam_beta1 adam_beta2
clip_grad seed hidden_dropout attention_dropout tensor_model_parallel_size sequence_parallel use_distributed_optimizer
bf16 fp16 recompute_granularity eval_interval eval_iters split load save save_interval exit_interval log_interval
tensorboard_dir dry_run override_schedule alum_start_fraction alum_alpha alum_epsilon alum_step_size alum_noise_std
alum_num_ascent_steps alum_projection alum_perturb alum_perturb_layer alum_ascent alum_dropout alum_inner_divergence
alum_inner_reduction alum_detach_targets
alum_detach_embeddings alum_nsp alum_batch_fraction alum_head_chunk_rows mask_rate_start mask_rate_end
mask_rate_steps""".split()


def test_options_are_unique_documented_and_as_promised():
    options = list(options_of(RunConfig))
    names = [option.name for option in options]
    assert len(names) == len(set(names))
    assert set(PROMISED) <= set(names)
    assert [option.name for option in options if not option.doc] == []


def test_a_run_survives_its_storage():
    config = parse_config(RunConfig, [*BASE, "--alum-epsilon", "0.05", "--bf16", "--exit-interval", "7"])
    assert config_from_dict(RunConfig, config_to_dict(config)) == config


def test_the_papers_defaults():
    config = parse_config(RunConfig, BASE)
    assert (config.alum.alpha, config.alum.epsilon, config.alum.step_size, config.alum.noise_std) == (
        10,
        1e-5,
        1e-3,
        1e-5,
    )
    assert (config.optimizer.lr, config.optimizer.lr_warmup_fraction, config.training.global_batch_size) == (
        1e-4,
        0.01,
        256,
    )


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ("--num-attention-heads 2 --tensor-model-parallel-size 4", "--num-attention-heads must be a multiple of"),
        ("--alum-perturb layer --alum-perturb-layer 2", r"--alum-perturb-layer must be below --num-layers \(2\)"),
        ("--alum-ascent label --alum-head-chunk-rows 8", "--alum-head-chunk-rows must be 0 with --alum-ascent label"),
        (
            "--alum-dropout shared --alum-batch-fraction 0.5",
            "--alum-batch-fraction must be 1 with --alum-dropout shared",
        ),
        ("--token-multiple 12", "--token-multiple must be a multiple of 8 x .* = 8, but is 12 instead. Take 16"),
        ("--token-multiple 24 --tensor-model-parallel-size 2", "--token-multiple must be a multiple of .* = 16"),
        ("--exit-interval 0", "--exit-interval must be at least 1"),
        ("--save none", "--save must be given"),
        ("--profile-step-start 5 --profile-step-end 3", r"must be at least 1 and at most --profile-step-end \(3\)"),
    ],
)
def test_what_two_sections_exclude(argv, part):
    with pytest.raises(ValueError, match=part):
        parse_config(RunConfig, [*BASE, *argv.split()])


def test_batches_and_processes_must_divide():
    config = parse_config(RunConfig, [*BASE, *"--global-batch-size 24 --micro-batch-size 4".split()])
    assert config.data_parallel_size(3) == 3
    with pytest.raises(ValueError, match=r"times the data-parallel size \(4\), but is 24 instead"):
        config.data_parallel_size(4)
