from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import foredraft
from foredraft.cli import main

pytestmark = pytest.mark.usefixtures("no_hub")


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def article(tmp_path):
    file = tmp_path / "article.txt"
    file.write_text("w1 w2 w3 w4 w5\n")
    return file


def one_line_error(result) -> str:
    """The error of a command that must fail as a user error; nothing on stdout, no traceback."""
    code, out, err = result
    assert code == 2, err
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("foredraft: "), err
    return lines[0]


def test_version(command):
    assert command("--version") == (0, f"foredraft {foredraft.__version__}\n", "")


def test_every_command_is_there(command):
    code, out, _ = command("--help")
    assert code == 0
    for name in main.COMMANDS:
        assert f"  {name} " in out


def test_help_imports_no_other_command():
    """`foredraft --help` imports no command, a command's --help that command, and neither a heavy library."""
    script = ("import json, sys\nfrom typer.testing import CliRunner\nfrom foredraft.cli.main import app\n"
              "assert CliRunner().invoke(app, sys.argv[1:]).exit_code == 0\nprint(json.dumps(list(sys.modules)))")
    paths = os.pathsep.join(filter(None, (str(Path(foredraft.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    shared = {f"foredraft.cli.{name}" for name in ("lazy", "main", "output", "options")}
    for words, own in ((["--help"], set()), (["summarize", "--help"], {"foredraft.cli.generate"})):
        done = subprocess.run([sys.executable, "-c", script, *words], env=os.environ | {"PYTHONPATH": paths},
                              capture_output=True, text=True, check=True)
        found = set(json.loads(done.stdout))
        assert {name for name in found if name.startswith("foredraft.cli.")} - shared == own
        assert not found & {"torch", "numba", "transformers", "triton"}


def test_every_command_has_help():
    import typer

    group = typer.main.get_command(main.app)
    for name, (_, line) in main.COMMANDS.items():
        assert line.endswith(".") and len(line) <= 80 and group.commands[name].help


def test_summaries_in_order(command, fake_load, article, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("w7 w8")
    code, out, _ = command("summarize", article, other, "--drafter", "none", "--target", "somewhere")
    assert code == 0
    assert out.splitlines() == [f"== {article}", "w1 w2 w3 w4 w5", f"== {other}", "w7 w8"]
    assert fake_load == [("somewhere", {"drafter": None, "device": "cpu", "dtype": "float32", "weights": None,
                                        "adapter": None, "revision": None})]


def test_the_chosen_type_of_the_encoder_is_named(command, fake_load, fake_model, article, monkeypatch):
    monkeypatch.setattr(fake_model, "dtype", "int8", raising=False)
    assert "the encoder runs in int8" in command("summarize", article, "--dtype", "auto", "--weights", "int4")[2]
    assert "the encoder" not in command("summarize", article)[2]


def test_standard_input(command, fake_load):
    assert command("summarize", stdin=b"w1 w2")[:2] == (0, "w1 w2\n")
    assert command("summarize", "-", stdin=b"w1 w2")[:2] == (0, "w1 w2\n")


def test_json_is_the_last_line(command, fake_load, article):
    code, out, err = command("summarize", article, "--json", "--stats")
    text, last = out.splitlines()
    result = json.loads(last)
    assert code == 0 and text == "w1 w2 w3 w4 w5"
    assert result["summaries"][0]["summary"] == text
    assert result["summaries"][0]["proposers"][:3] == ["lookup", "lookup", "target"]
    assert len(result["summaries"][0]["token_ids"]) == result["stats"]["emitted"] == 6
    assert "6 tokens in 6 steps" in err


@pytest.mark.parametrize(("content", "message"), [
    (b"  \n", "the text is empty"),
    (b"caf\xe9 au lait", "not UTF-8 at byte 3"),
])
def test_unreadable_texts(command, fake_load, tmp_path, content, message):
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    error = one_line_error(command("summarize", file))
    assert str(file) in error and message in error


def test_a_prefix_is_put_before_every_text(command, fake_load, fake_model, tmp_path, monkeypatch):
    assert command("generate", "--text", "w1", "--text", "w2", "--prefix", "w7 ")[1].splitlines() == [
        "== --text 1", "w7 w1", "== --text 2", "w7 w2"]
    # summarize takes it from config.json
    monkeypatch.setattr(fake_model, "path", tmp_path, raising=False)
    config = {"task_specific_params": {"summarization": {"prefix": "w9 "}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert command("summarize", "--text", "w1")[1] == "w9 w1\n"
    assert command("summarize", "--text", "w1", "--prefix", "")[1] == "w1\n"
    assert command("generate", "--text", "w1")[1] == "w1\n"
    result = json.loads(command("generate", "--text", "w1", "--json")[1].splitlines()[-1])
    assert result["outputs"][0]["output"] == "w1" and result["prefix"] == ""


def test_a_text_comes_from_one_place(command, fake_load, article):
    assert "give FILEs, or --text TEXT" in one_line_error(command("summarize", article, "--text", "w1"))
    assert "--text is empty" in one_line_error(command("summarize", "--text", " "))


def test_options_with_underscores(command, fake_load, article):
    assert command("summarize", article, "--max_new_tokens", 2)[:2] == (0, "w1 w2\n")


def test_missing_texts(command, fake_load, tmp_path):
    assert "gone.txt: No such file" in one_line_error(command("summarize", tmp_path / "gone.txt"))
    assert "Is a directory" in one_line_error(command("summarize", tmp_path))
    assert "-: the text is empty" in one_line_error(command("summarize"))


@pytest.mark.parametrize(("option", "value", "message"), [
    ("--draft-tokens", "-1", "draft_tokens is -1"),
    ("--draft-tokens", "1000", "draft_tokens is 1000"),
    ("--temperature", "-0.5", "temperature is -0.5"),
    ("--temperature", "nan", "temperature is nan"),
    ("--top-p", "0", "top_p is 0"),
    ("--max-new-tokens", "0", "max_new_tokens is 0"),
    ("--min-new-tokens", "-1", "--min-new-tokens: min_new_tokens is -1"),
    ("--min-new-tokens", "300", "min_new_tokens is 300, more than max_new_tokens"),
    ("--repetition-penalty", "0", "--repetition-penalty: repetition_penalty is 0"),
    ("--no-repeat-ngram-size", "-2", "--no-repeat-ngram-size: no_repeat_ngram_size is -2"),
    ("--choices", "", "--choices: choices holds an empty text"),
    ("--regex", "", "--regex: regex is ''"),
    ("--json-schema", "none.json", "--json-schema none.json: no such file"),
    ("--json-schema", __file__, "json_schema is not a JSON schema"),
    ("--set", "min_p=2", "--set min_p=2: min_p is 2; give a number"),
    ("--set", "min_p=warm", "--set min_p=warm: min_p is 'warm'; give a number"),
    ("--set", "min_p", "--set is 'min_p'; give NAME=VALUE"),
    ("--set", "minp=0.1", "--set minp: there is no such setting; did you mean min_p?"),
    ("--set", "top_k=5", "--set top_k: has an option of its own; give --top-k"),
    ("--set", "logprobs=2", "--set logprobs: is supported in Python only"),
])
def test_values_out_of_range(command, fake_load, article, option, value, message):
    assert message in one_line_error(command("summarize", article, option, value))


def test_no_such_device(command, article, tiny_checkpoints, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    target = tiny_checkpoints["v1.0"]
    assert "no CUDA device" in one_line_error(command("summarize", article, "--target", target, "--device", "cuda"))
    assert "'abacus'" in one_line_error(command("summarize", article, "--target", target, "--device", "abacus"))


def test_no_such_drafter(command, article, tiny_checkpoints):
    target = tiny_checkpoints["v1.0"]
    assert "drafter 'psychic'" in one_line_error(
        command("summarize", article, "--target", target, "--drafter", "psychic"))


def test_no_checkpoint(command, article, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json" in one_line_error(command("summarize", article, "--target", empty))


def test_no_tokenizer(command, article, tiny_checkpoints):
    error = one_line_error(command("summarize", article, "--target", tiny_checkpoints["v1.0"], "--drafter", "none"))
    assert "tokenizer.json" in error


def test_colours_cover_the_text(word_tokenizer):
    from foredraft.cli import coloured_text as show

    tokens = [4, 5, 6, 7, 1]
    text = show.coloured(tokens, ["lookup", "lookup", "target", "ngram", "target"], word_tokenizer)
    assert text.plain == word_tokenizer.decode(tokens) == "w1 w2 w3 w4"
    assert [(span.start, span.end) for span in text.spans] == [(0, 5), (8, 11)]
    meaning = show.legend([["target", "lookup"]]).plain
    assert "lookup" in meaning and "ngram" not in meaning


def test_colours_of_half_characters():
    """Tokens of bytes: the text is whole where a character's last byte has come."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from foredraft.cli import coloured_text as show

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: token for token, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokens = tokenizer.encode("a\u4e2db").ids
    found = show.pieces(tokens, ["target", "lookup", "lookup", "ngram", "target"], tokenizer)
    assert found == [("a", "target"), ("\u4e2d", "ngram"), ("b", "target")]


def test_streaming_on_a_terminal(fake_model):
    from rich.console import Console

    from foredraft.cli import coloured_text as show

    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    with show.Stream(console, fake_model.tokenizer) as stream:
        stream.finish(fake_model.generate(["w1 w2"], streamer=stream))
    assert "w1" in console.file.getvalue() and stream.tokens == [4, 5, 1]


def test_many_texts_on_a_terminal(fake_model):
    from rich.console import Console

    from foredraft.cli import coloured_text as show

    console = Console(file=io.StringIO(), width=60)
    show.print_outputs(console, ["one", "two"], fake_model.generate(["w1 w2", "w3"]), fake_model.tokenizer)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert lines == ["== one", "w1 w2", "== two", "w3", "the target's own tokens   drafted by lookup"]


def test_a_full_disk_behind_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "foredraft", "--version"], stdout=full, stderr=subprocess.PIPE,
                              text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr
