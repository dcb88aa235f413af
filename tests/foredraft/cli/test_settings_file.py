import json
import resource

import pytest

from foredraft.cli import settings_file
from foredraft.errors import UserError

SETTINGS = {"--temperature": 0.8, "--seed": None}


def test_settings_are_written_atomically(tmp_path):
    output = tmp_path / "out.jsonl"
    path = settings_file.path_of(output)
    assert not settings_file.check(output, SETTINGS) and json.loads(path.read_text()) == SETTINGS
    assert settings_file.check(output, SETTINGS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(UserError, match="out.jsonl.settings.json: file too large; free some space and run the same"):
            settings_file.write(output, {"--temperature": 0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and json.loads(path.read_text()) == SETTINGS


@pytest.mark.parametrize("now, words", [
    ({"--temperature": 0.7}, "with --temperature 0.8, this run is with --temperature 0.7"),
    ({"--temperature": 0.8, "--seed": 3}, "without --seed, this run is with --seed 3"),
    ({"--temperature": 0.8, "--later": 1}, "without --later, this run is with --later 1"),
    ({}, "with --temperature 0.8, this run is without --temperature")])
def test_a_flag_that_differs_is_named(tmp_path, now, words):
    settings_file.write(tmp_path / "out.jsonl", SETTINGS)
    with pytest.raises(UserError, match=f"out.jsonl: was begun {words}; use the earlier settings"):
        settings_file.check(tmp_path / "out.jsonl", now)
