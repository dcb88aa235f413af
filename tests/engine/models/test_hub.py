"""Checkpoints from the hub, against a server that speaks its protocol: shards, revisions, tokens, drops, and no network."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from hub_server import Repository, serve
from safetensors.torch import load_file, save_file

import foredraft
from foredraft.engine.models.hub import find_adapter, find_checkpoint
from foredraft.engine.models.t5_weights import load_weights
from foredraft.errors import UserError

ID = "someone/t5-tiny"


def shard(folder):
    """Split model.safetensors into three shards."""
    tensors, where = load_file(folder / "model.safetensors"), {}
    for i in range(3):
        part = {name: tensors[name] for name in sorted(tensors)[i::3]}
        where |= dict.fromkeys(part, f"model-{i + 1:05}-of-00003.safetensors")
        save_file(part, folder / f"model-{i + 1:05}-of-00003.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


@pytest.fixture
def hub(tiny_model_path, tmp_path, monkeypatch):
    """The server with one sharded checkpoint, and an empty cache."""
    from huggingface_hub import constants

    folder = shard(shutil.copytree(tiny_model_path, tmp_path / "source"))
    for name in ("README.md", "flax_model.msgpack", "tf_model.h5", "pytorch_model.bin"):
        (folder / name).write_bytes(b"not needed")
    with serve({ID: Repository(folder)}) as server:
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        settings = {"ENDPOINT": server.address, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False,
                    "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"),
                    "HF_TOKEN_PATH": str(tmp_path / "token"), "DOWNLOAD_CHUNK_SIZE": 1000}
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def refuse(match, *arguments, **options):
    with pytest.raises(UserError, match=match) as caught:
        find_checkpoint(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_a_sharded_checkpoint_is_downloaded_once(hub, tiny_model_path):
    model = foredraft.load(ID)
    assert model.generate(["w5 w9"], max_new_tokens=8).texts == foredraft.load(tiny_model_path).generate(
        ["w5 w9"], max_new_tokens=8).texts
    wanted = {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json",
              *(f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3))}
    assert sorted(name for name, _ in hub.downloads()) == sorted(wanted)
    hub.requests.clear()
    find_checkpoint(ID)
    assert hub.downloads() == []


def test_a_dropped_connection_is_resumed(hub):
    repository, name = hub.repositories[ID], "model-00002-of-00003.safetensors"
    repository.broken.add(name)
    folder = find_checkpoint(ID)
    half = len(repository.revisions["main"][name]) // 2
    first, second = [part for file, part in hub.downloads() if file == name]
    # what had come of the first half is not downloaded again
    assert first is None and second == f"bytes={half - half % 1000}-"
    assert (folder / name).read_bytes() == repository.revisions["main"][name]
    load_weights(folder)


def test_a_shard_that_the_hub_lacks(hub):
    del hub.repositories[ID].revisions["main"]["model-00002-of-00003.safetensors"]
    with pytest.raises(UserError, match="shard model-00002-of-00003.safetensors is missing"):
        load_weights(find_checkpoint(ID))


def test_a_file_that_cannot_be_read(hub):
    hub.repositories[ID].hidden.add("model-00001-of-00003.safetensors")
    refuse("the hub did not give it: it answers 404 for http://.*/model-00001-of-00003.safetensors; try again", ID)
    # it is there on the next try, and only what is missing is downloaded
    hub.repositories[ID].hidden.clear()
    hub.requests.clear()
    load_weights(find_checkpoint(ID))
    assert ("model-00001-of-00003.safetensors", None) in hub.downloads() and len(hub.downloads()) < 7


def test_revisions(hub, tiny_checkpoints):
    other = {**hub.repositories[ID].revisions["main"]}
    other["config.json"] = json.dumps(json.loads(other["config.json"]) | {"n_positions": 77}).encode()
    hub.repositories[ID].revisions["v2"] = other | {"extra.json": b"{}"}
    assert foredraft.load(ID, revision="v2").source_limit == 77 != foredraft.load(ID).source_limit
    assert foredraft.load(ID, revision=hub.repositories[ID].commit("v2")).source_limit == 77
    refuse("it has no revision 'v9'; give a branch, tag or commit", ID, "v9")
    refuse("revision 'v2' is of a hub repository, and .* is a directory", tiny_checkpoints["v1.0"], "v2")


def test_a_private_repository_needs_its_token(hub, monkeypatch):
    hub.repositories[ID].token = "secret"
    refuse("it has no such repository, or shows it only with a token", ID)
    refuse("it has no such repository, or shows it only with a token", ID, token="wrong")
    assert find_checkpoint(ID, token="secret").is_dir()
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.requests.clear()
    foredraft.load(ID)
    assert hub.requests[0][1].startswith("/api/models/")


def test_names_that_the_hub_does_not_have_or_guards(hub):
    refuse("it has no such repository", "someone/else")
    hub.repositories[ID].gated = True
    refuse("its owner must grant you access", ID)


def test_without_a_network(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refuse("it cannot be reached, and nothing is in the cache", ID)
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    warm = find_checkpoint(ID)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert find_checkpoint(ID) == warm and hub.requests == []
    # neither does a server that is down matter to a warm cache
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert find_checkpoint(ID) == warm
    refuse("it cannot be reached, and nothing is in the cache", "someone/else")


def test_a_cache_that_lacks_a_file(hub, monkeypatch):
    from huggingface_hub import constants

    folder = find_checkpoint(ID)
    (folder / "model-00003-of-00003.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refuse("someone/t5-tiny: ", ID)


def test_pickled_weights_are_named_with_their_command(hub, tiny_checkpoints, tmp_path, command):
    files = hub.repositories[ID].revisions["main"]
    torch.save(load_file(tiny_checkpoints["v1.1"] / "model.safetensors"), tmp_path / "pytorch_model.bin")
    for name in [name for name in files if "safetensors" in name]:
        del files[name]
    files["pytorch_model.bin"] = (tmp_path / "pytorch_model.bin").read_bytes()
    refuse(rf"only pickled weights \(pytorch_model.bin\); run: foredraft convert {ID} --out FOLDER", ID)
    refuse(rf"run: foredraft convert {ID} --revision main --out FOLDER", ID, "main")
    assert "pytorch_model.bin" not in [name for name, _ in hub.downloads()]
    code, _, err = command("convert", ID, "--revision", "main", "--out", tmp_path / "out")
    assert code == 0, err
    assert foredraft.load(tmp_path / "out", drafter=None).generate(["w5"], max_new_tokens=3).texts[0] is not None


def test_an_adapter_from_the_hub(hub, tiny_model_path, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(tiny_model_path)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "a")
    hub.repositories["someone/adapter"] = Repository(tmp_path / "a", token="secret")
    assert {file.name for file in find_adapter("someone/adapter", "secret").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors"}
    ours = foredraft.load(ID, adapter="someone/adapter", token="secret").generate(["w5 w9"], max_new_tokens=8)
    assert ours.texts == foredraft.load(tiny_model_path, adapter=tmp_path / "a").generate(["w5 w9"], max_new_tokens=8).texts


@pytest.mark.full
def test_the_environment_alone_says_where_the_hub_is(hub, tmp_path):
    """A process of its own, as a user runs it: HF_ENDPOINT and HF_HOME."""
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    words = [sys.executable, "-m", "foredraft", "generate", "--text", "w5 w9", "--max-new-tokens", "3", "--target", ID]

    def run(**changes):
        return subprocess.run(words, env=environment | changes, capture_output=True, text=True)

    first = run()
    assert first.returncode == 0, first.stderr
    offline = run(HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.returncode == 0 and offline.stdout == first.stdout
    nothing = run(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert nothing.returncode == 2 and len(nothing.stderr.strip().splitlines()) == 1, nothing.stderr
