"""`foredraft convert`, from the command line to a model that loads."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import foredraft


@pytest.fixture
def source(tiny_model_path, tmp_path):
    folder = shutil.copytree(tiny_model_path, tmp_path / "bin")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_the_error_of_a_pickled_checkpoint_names_the_command_that_mends_it(command, source, tiny_model_path, tmp_path):
    with pytest.raises(foredraft.UserError, match="run: foredraft ") as caught:
        foredraft.load(source)
    words = str(caught.value).partition("run: foredraft ")[2].partition(",")[0].split()
    code, out, _ = command(*words[:-1], tmp_path / "out", "--json")
    assert words[:-1] == ["convert", str(source), "--out"] and code == 0
    assert json.loads(out)["dtype"] == "float32"
    text = "w5 w9 w33"
    assert foredraft.load(tmp_path / "out").generate([text], max_new_tokens=8).texts == foredraft.load(
        tiny_model_path).generate([text], max_new_tokens=8).texts


def test_options_that_are_refused(command, source, tiny_model_path, tmp_path):
    def error(*arguments):
        code, out, err = command("convert", *arguments)
        assert code == 2 and out == "" and len(err.strip().splitlines()) == 1, err
        return err

    out = tmp_path / "out"
    assert "--dtype int8 is not known" in error(source, "--out", out, "--dtype", "int8")
    assert "is an input of this command" in error(source, "--out", source)
    assert "holds safetensors already" in error(tiny_model_path, "--out", out)
    assert "no such directory" in error(tmp_path / "no" / "where", "--out", out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("text")
    assert "is not empty" in error(source, "--out", tmp_path / "full")
    assert "is not empty" in error(source, "--out", tmp_path / "full", "--overwrite")
    assert command("convert", source, "--out", out)[0] == 0
    assert "is not empty" in error(source, "--out", out)
    assert command("convert", source, "--out", out, "--overwrite", "--dtype", "bfloat16")[0] == 0
    assert load_file(out / "model.safetensors")["shared.weight"].dtype == torch.bfloat16
