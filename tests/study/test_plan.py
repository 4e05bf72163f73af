"""The shipped plans: every arm is a run that the trainer takes, at equal data and from equal rates; refusals."""

import itertools

import pytest
import yaml

from megatron_alum.config.cli import config_to_dict, parse_config
from megatron_alum.config.run import RunConfig
from megatron_alum.objective.schedule import learning_rate
from megatron_alum.study.cells import Cell, cells_of
from megatron_alum.study.pilot import choose, trials
from megatron_alum.study.plan import STANDARD, read_plan, resolved
from megatron_alum.study.pretraining import arguments, arm_options, rate_of_longer, start_options
from tests.study.plans import FOLDER, shipped

SCALES = ("smoke", "cpu", "gpu", "paper")
BELONG_TO_A_PLACE = {"save", "load", "keep_last", "exit_interval", "dry_run", "init_from"}
SHAPE = {"num-layers": 6, "hidden-size": 48, "num-attention-heads": 4}


def run_of(plan, tmp_path, arm=None):
    """The RunConfig of the start or of an arm as it resumes the start, whose options it takes where it gives none."""
    start = {**start_options(plan, tmp_path, 1)}
    if start.pop("init-from", None):
        start |= SHAPE
    options = start
    if arm is not None:
        own = arm_options(plan, tmp_path, 1, arm, resolved(arm.options, 0.02, 1.0))
        options = {**start, **own}
        options.pop("exit-interval")
    return parse_config(RunConfig, arguments(options))


@pytest.mark.parametrize("scale", ["smoke", "gpu", "paper"])
def test_arms_differ_in_the_adversarial_branch_alone(scale, tmp_path):
    """Equal samples, masks, rates and phases: all else in the configuration is one and the same, BERT+ apart."""
    plan = shipped(scale, tmp_path)
    runs = {arm.name: config_to_dict(run_of(plan, tmp_path, arm)) for arm in plan.arms if not arm.equal_cost}
    for name, run in runs.items():
        differing = {key for key, value in run.items() if value != runs[STANDARD][key]} - BELONG_TO_A_PLACE
        assert all(key.startswith("alum_") for key in differing), (name, differing)
        assert run["alum_start_fraction"] == runs[STANDARD]["alum_start_fraction"]


@pytest.mark.parametrize("scale", ["smoke", "gpu", "paper"])
def test_an_arm_begins_its_phase_where_the_start_ends(scale, tmp_path):
    plan = shipped(scale, tmp_path)
    start = run_of(plan, tmp_path)
    assert start.last_iteration == plan.start_iters < start.first_alum_iteration
    for arm in plan.arms:
        run = run_of(plan, tmp_path, arm)
        is_plain = arm.options.get("alum-alpha") == 0
        expected = run.training.train_iters + 1 if is_plain else plan.start_iters + 1
        assert run.first_alum_iteration == expected, arm.name


@pytest.mark.parametrize("scale", ["smoke", "gpu", "paper"])
def test_the_longer_run_costs_what_an_ascent_costs_and_begins_at_the_same_rate(scale, tmp_path):
    """8 F a step of one ascent against 3 F a standard one."""
    plan = shipped(scale, tmp_path)
    (longer,) = (arm for arm in plan.arms if arm.equal_cost)
    steps = plan.total_iters_of(longer) - plan.start_iters
    assert abs(3 * steps - 8 * plan.arm_iters) <= 1.5
    first = plan.start_iters + 1
    rates = [learning_rate(first, run_of(plan, tmp_path, arm)) for arm in (plan.arm(STANDARD), longer)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-8)
    if scale != "paper":  # whose curriculum the longer run stretches
        assert len(set(run_of(plan, tmp_path).data.mask_rates)) == 1
    assert rate_of_longer(plan, tmp_path, 1, plan.total_iters) == pytest.approx(run_of(plan, tmp_path).optimizer.lr)


@pytest.mark.parametrize("scale", SCALES)
def test_whole_comparisons_come_early(scale, tmp_path):
    """Seed by seed; of a seed the start, then arm by arm training, probes and fine-tunings; no cell twice."""
    plan = shipped(scale, tmp_path)
    cells = list(cells_of(plan))
    assert len({cell.name for cell in cells}) == len(cells)
    assert [key for key, _ in itertools.groupby(cell.seed for cell in cells if cell.seed)] == list(plan.seeds)
    for seed in plan.seeds:
        mine = [cell for cell in cells if cell.seed == seed]
        assert mine[0] == Cell("start", seed)
        arms = [key for key, _ in itertools.groupby(cell.arm for cell in mine if cell.arm)]
        assert arms == [arm.name for arm in plan.arms]
        for arm in arms:
            kinds = [key for key, _ in itertools.groupby(cell.kind for cell in mine if cell.arm == arm)]
            assert kinds[:2] == ["train", "probe"]
    if plan.pilot is not None:
        (place,) = (n for n, cell in enumerate(cells) if cell.kind == "pilot")
        first_use = next(n for n, cell in enumerate(cells) if cell.arm == plan.pilot.arm)
        assert place < first_use


def test_the_pilots_numbers_take_the_place_of_its_name():
    options = {"alum-epsilon": "pilot", "alum-noise-std": "0.1 pilot", "alum-alpha": "pilot-alpha", "alum-dropout": "x"}
    expected = {"alum-epsilon": 0.02, "alum-noise-std": 0.002, "alum-alpha": 10.0, "alum-dropout": "x"}
    assert resolved(options, 0.02, 10.0) == expected


def test_the_pilot_tries_from_the_largest_radius_and_takes_the_first_within_the_tolerance(tmp_path):
    order = list(trials(shipped("smoke", tmp_path)))
    assert order == [(10, 0.05), (10, 0.02), (1, 0.05), (1, 0.02)]
    assert choose({(10, 0.05): 5.1, (10, 0.02): 5.02}, 5.02) == ((10, 0.02), True)
    assert choose({(10, 0.05): 5.3, (10, 0.02): 5.1, (1, 0.05): 5.2}, 5.02) == ((10, 0.02), False)


# change of the smoke plan -> what the refusal says
REFUSALS = [
    ({"arms": {"paper": {"options": {}}}}, "must begin with standard"),
    ({"arms": {"standard": {"options": {}}, "original": {"options": {}}}}, "none of them original"),
    ({"arms": {"standard": {"optons": {}}}}, "does not know optons"),
    ({"contrasts": [["textbook", "nobody"]]}, "must be pairs of arms"),
    ({"contrasts": [["textbook"]]}, "must be pairs of arms, but are"),
    ({"pilot": {"arm": "nobody", "radii": [0.1]}}, "must name one of the arms"),
    ({"pilot": None}, "must be given where an arm's option names it"),
    ({"start-iters": 7}, "must be a multiple"),
    ({"seeds": []}, "at least one value"),
    ({"arm-iters": 0}, "at least 1"),
    ({"probes": None}, "has no"),
    ({"colour": "red"}, "does not know colour"),
]


@pytest.mark.parametrize("change, said", REFUSALS, ids=[said for _, said in REFUSALS])
def test_a_plan_that_cannot_be_is_refused_with_a_sentence(change, said, tmp_path):
    content = {**yaml.safe_load((FOLDER / "smoke.yaml").read_text()), **change}
    content = {name: value for name, value in content.items() if value is not None or name == "pilot"}
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ValueError, match=said):
        read_plan(path, places={})


def test_what_all_arms_share_is_measured_once(tmp_path):
    """The common start is the first point of every curve: fine-tuned from the first arm alone, once per seed."""
    plan = shipped("cpu", tmp_path)
    curves = [cell for cell in cells_of(plan) if cell.kind == "curve"]
    starts = [cell for cell in curves if cell.iteration == plan.start_iters]
    assert [(cell.seed, cell.arm, cell.finetune_seed) for cell in starts] == [
        (seed, STANDARD, finetuning) for seed in (1, 2) for finetuning in (1, 2, 3)
    ]
    drawn = [arm for arm in plan.arms if arm.curve]
    later = (plan.curve_points - 1) * len(drawn) * len(plan.seeds) * len(plan.downstream[0].seeds)
    assert len(drawn) == 2 and len(curves) == len(starts) + later and len({cell.name for cell in curves}) == len(curves)
