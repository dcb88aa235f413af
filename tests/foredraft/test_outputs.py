"""No command writes over an input, a model, or a file that foredraft did not write."""

import json
import os
import shutil

import pytest

from foredraft.errors import UserError
from foredraft.outputs import check_file, check_folder


@pytest.fixture
def files(tmp_path, tiny_model_path, monkeypatch):
    """A folder with a target, articles, a text of the user's and counts; and what it holds."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_path, "mine")
    lines = [json.dumps({"article": f"w5 w{i} w9", "highlights": f"w{i} w9"}) + "\n" for i in range(10, 30)]
    (tmp_path / "articles.jsonl").write_text("".join(lines))
    (tmp_path / "text.txt").write_text("a text of my own")
    (tmp_path / "model.arpa").write_text("\\data\\\nngram 1=1\n\n\\1-grams:\n-1\tw5\n\n\\end\\\n")
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<html>my page</html>")
    (tmp_path / "link.jsonl").symlink_to("articles.jsonl")
    return tmp_path


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


NGRAM = "ngram count articles.jsonl --tokenizer mine --out"
TRAIN = "train --data articles.jsonl --validation articles.jsonl --target mine --cache cache --out"


@pytest.mark.parametrize("arguments", [
    f"{NGRAM} articles.jsonl", f"{NGRAM} link.jsonl", f"{NGRAM} text.txt", f"{NGRAM} mine", f"{NGRAM} text.txt/counts",
    "ngram import model.arpa --tokenizer mine --out text.txt", "ngram import model.arpa --tokenizer mine --out model.arpa",
    "train --drafter ngram --data articles.jsonl --target mine --out articles.jsonl",
    "train --drafter ngram --data articles.jsonl --target mine --out text.txt",
    f"{TRAIN} mine --drafter lstm", f"{TRAIN} text.txt --drafter lstm",
    "train-target --data articles.jsonl --validation articles.jsonl --tokenizer mine --out mine",
    "train-target --data articles.jsonl --validation articles.jsonl --tokenizer mine --init mine --out mine",
    "compact --ckpt-path mine --target mine --draft-vocab 0 --out mine",
    "compact --ckpt-path mine --target mine --draft-vocab 0 --out page",
    "compact --ckpt-path mine --target mine --draft-vocab 0 --out page --overwrite",
    "tune-skip --data articles.jsonl --target mine --out articles.jsonl",
    "tune-skip --data articles.jsonl --target mine --out text.txt",
    "tune-tree --data articles.jsonl --target mine --out articles.jsonl",
    "tune-tree --data articles.jsonl --target mine --out text.txt",
    "pseudo --data articles.jsonl --target mine --out text.txt", "pseudo --data articles.jsonl --target mine --out mine",
    "matrix --data page --target mine --out text.txt", "matrix --data page --target mine --out new --record text.txt",
    "report --out page", "report --out text.txt",
    "summarize --target mine --input articles.jsonl --output articles.jsonl",
    "summarize --target mine --input articles.jsonl --output link.jsonl",
    "summarize --target mine --input articles.jsonl --output text.txt",
    "summarize --target mine --input articles.jsonl --output mine",
    "summarize --target mine --input articles.jsonl --output nowhere/out.jsonl",
    "target-card --target mine --data articles.jsonl",
])
def test_a_command_that_would_destroy_a_file_is_refused(files, command, arguments):
    (files / "mine" / "README.md").write_text("my card")
    before = contents(files)
    code, _, err = command(*arguments.split())
    lines = [line for line in err.splitlines() if "compiling kernels" not in line]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("foredraft: "), err
    after = contents(files)
    assert {path: text for path, text in after.items() if "cache" not in path.parts} == before


def test_an_earlier_result_is_replaced(files, command):
    for _ in range(2):
        assert command(*f"{NGRAM} new/counts".split())[0] == 0
    assert command(*"ngram fit new/counts --out new/table".split())[0] == 0
    assert command(*"ngram fit new/counts --out new/counts".split())[0] == 2
    assert command(*"ngram export new/table --arpa model.arpa".split())[0] == 2
    assert command(*"ngram export new/table --arpa model.arpa --overwrite".split())[0] == 0


def test_rules(tmp_path):
    out = tmp_path / "out"
    check_file(out, [None, tmp_path / "other"], lambda _: False, "table")
    out.write_text("")
    check_file(out, [], lambda _: True, "table")
    check_file(out, [], lambda _: False, "table", overwrite=True)
    for refused in (lambda: check_file(out, [], lambda _: False, "table"),
                    lambda: check_file(out, [os.path.relpath(out)], lambda _: True, "table", overwrite=True),
                    lambda: check_file(tmp_path, [], lambda _: True, "table"), lambda: check_folder(out, []),
                    lambda: check_folder(out / "inside" / "a", []), lambda: check_folder(tmp_path, [str(tmp_path)])):
        with pytest.raises(UserError):
            refused()
    check_folder(tmp_path / "new" / "folder", [tmp_path])
