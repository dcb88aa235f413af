"""A run folder belongs to one run: a used one is refused, and a resumed run has the settings that it was begun with."""

import pytest

from foredraft.errors import UserError
from foredraft.train.run_folder import begin_run, flags_of, refuse_used

CONFIG = {"drafter": "lstm", "method": {"loss": 1.0, "kd_loss": 0.0, "kd_temp": 8.0}, "sizes": (("hidden_size", 8),),
          "steps": 100, "decay_steps": 25, "learning_rate": 1e-3}
SETTINGS = {"--target": "abc", "--data": "def"} | flags_of(CONFIG)


def checkpoint(out, step):
    (out / f"checkpoint-{step}").mkdir(parents=True)


def test_flags_are_those_of_the_command():
    assert flags_of(CONFIG) == {"--drafter": "lstm", "--loss": 1.0, "--kd-loss": 0.0, "--kd-temp": 8.0,
                                "--size": [["hidden_size", 8]], "--steps": 100, "--decay-steps": 25, "--lr": 1e-3}


@pytest.mark.parametrize("file", ["checkpoint-20", "config.json", "model.safetensors", "pytorch_model.bin", "training.json"])
def test_a_used_folder_is_refused(tmp_path, file):
    (tmp_path / file).mkdir() if file.startswith("checkpoint") else (tmp_path / file).write_text("{}")
    with pytest.raises(UserError, match=f"{file}.*give another --out, or --resume"):
        begin_run(tmp_path, SETTINGS, 100, resume=False)
    assert not (tmp_path / "settings.json").exists()


def test_a_run_that_left_no_checkpoint_may_begin_again(tmp_path):
    assert begin_run(tmp_path / "out", SETTINGS, 100, resume=False) is None
    assert begin_run(tmp_path / "out", SETTINGS | {"--lr": 1.0}, 100, resume=False) is None
    with pytest.raises(UserError, match="no checkpoint-N to resume from"):
        begin_run(tmp_path / "out", SETTINGS, 100, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        refuse_used(tmp_path / "file")


def test_a_resumed_run_has_its_settings(tmp_path):
    begin_run(tmp_path, SETTINGS, 100, resume=False)
    checkpoint(tmp_path, 40)
    assert begin_run(tmp_path, SETTINGS, 100, resume=True).endswith("checkpoint-40")
    # more updates, or fewer, are no other run
    assert begin_run(tmp_path, SETTINGS | {"--steps": 60, "--decay-steps": 9}, 60, resume=True)
    for flag, value in (("--kd-loss", 1.0), ("--target", "other"), ("--data", "other"), ("--size", [])):
        with pytest.raises(UserError, match=f"was begun with {flag} .* this run has {flag}"):
            begin_run(tmp_path, SETTINGS | {flag: value}, 100, resume=True)
    assert begin_run(tmp_path, SETTINGS | {"--lr": 1.0}, 100, resume=True, check=False)
    with pytest.raises(UserError, match="40 updates are done, --steps is 39"):
        begin_run(tmp_path, SETTINGS | {"--steps": 39}, 39, resume=True)
