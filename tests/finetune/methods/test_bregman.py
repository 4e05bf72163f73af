"""The moving average of SMART's Bregman term on disk: whole in every complete checkpoint, missed when gone."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState

from megatron_alum.finetune.methods.bregman import FILE_NAME, MovingAverage
from megatron_alum.finetune.methods.presets import method
from megatron_alum.finetune.methods.trainer import AlumTrainer
from tests.finetune.methods.test_trainer import assert_equal, train

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
PLAN = method("smart", bregman_weight=1.0, bregman_momentum=0.5)


def run(folder, **options):
    return train(folder, "classification", method=PLAN, arguments_changes=SAVING, **options)


def test_the_average_by_hand():
    """Momentum 3/4: a quarter of the way from 0 to 8, then a quarter of what is left."""
    model, average = torch.nn.Linear(1, 1, bias=False), MovingAverage(0.75)
    torch.nn.init.zeros_(model.weight)
    average.on_train_begin(None, TrainerState(), None, model=model)
    torch.nn.init.constant_(model.weight, 8.0)
    for expected in (2.0, 3.5):
        average.on_step_end(None, TrainerState(), None, model=model)
        assert average.average["weight"].item() == expected


def test_the_average_is_there_before_the_checkpoint_counts_as_complete(tmp_path, monkeypatch):
    """A kill after any file of the second checkpoint leaves no trainer_state.json without an average."""
    seen = []
    original = AlumTrainer._save_optimizer_and_scheduler

    def observed(self, output_dir):
        seen.extend(sorted(path.name for path in (tmp_path / "checkpoint-2").iterdir()))
        assert str(output_dir).endswith(("checkpoint-2", "checkpoint-4"))
        original(self, output_dir)

    monkeypatch.setattr(AlumTrainer, "_save_optimizer_and_scheduler", observed)
    trainer, _ = run(tmp_path)
    first = seen[: seen.index("model.safetensors") + 1]
    assert FILE_NAME in first and "trainer_state.json" not in first
    assert not list(tmp_path.rglob("*.partial"))
    saved = load_file(tmp_path / "checkpoint-4" / FILE_NAME)
    for name, value in trainer.average.average.items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=0)


def test_a_run_killed_between_trainer_state_and_on_save_resumes_exactly(tmp_path):
    """Callbacks learn of a save when trainer_state.json is written; one that dies there leaves a whole checkpoint."""

    class Killed(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    _, straight = run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", callbacks=[Killed()])
    _, resumed = run(tmp_path / "b", resume=str(tmp_path / "b" / "checkpoint-2"))
    assert_equal(straight, resumed)


def test_a_checkpoint_elsewhere_brings_its_own_average(tmp_path):
    _, straight = run(tmp_path / "a")
    shutil.copytree(tmp_path / "a" / "checkpoint-2", tmp_path / "kept" / "checkpoint-2")
    _, resumed = run(tmp_path / "b", resume=str(tmp_path / "kept" / "checkpoint-2"))
    assert_equal(straight, resumed)


@pytest.mark.parametrize(
    ("damage", "reason"), [("missing", "is missing"), ("cut", "cannot be read"), ("other", "lacks")]
)
def test_a_checkpoint_without_a_whole_average_is_refused(tmp_path, damage, reason):
    run(tmp_path)
    file = tmp_path / "checkpoint-2" / FILE_NAME
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    if damage == "other":
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=f"checkpoint-2/{FILE_NAME} must hold the moving average .* but {reason}"):
        run(tmp_path, resume=str(tmp_path / "checkpoint-2"))


def test_a_saved_model_has_no_average_beside_it(tmp_path):
    trainer, _ = run(tmp_path / "a")
    trainer.save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").is_file() and not (tmp_path / "model" / FILE_NAME).exists()
