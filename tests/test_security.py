"""Nothing that a file holds is executed, and a small file cannot take all memory."""

from __future__ import annotations

import ast
import gzip
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from foredraft.errors import UserError

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDERS = ("foredraft", "engine", "kernels", "ngram_native", "train", "bench")
# callables that execute what they are given; re.compile and model.eval() have other names
EXECUTING = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads",
             "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "dill.load", "yaml.load",
             "yaml.unsafe_load", "torch.hub.load", "torch.jit.load", "runpy.run_path", "pandas.read_pickle"}
# attributes that render a template of a checkpoint
TEMPLATES = {"apply_chat_template", "chat_template", "from_string"}


def complaints(source: str) -> list[str]:
    """Calls and keywords of a Python source that execute what a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"imports {name}" for name in names if name.split(".")[0] in ("jinja2", "marshal", "shelve", "dill")]
        if isinstance(node, ast.Attribute) and node.attr in TEMPLATES:
            found.append(f".{node.attr}")
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in EXECUTING:
            found.append(name)
        if name.endswith("torch.load") and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
            found.append("np.load with allow_pickle")
        if given.get("trust_remote_code", "False") != "False" or given.get("shell", "False") != "False":
            found.append("trust_remote_code or shell")
    return found


def test_no_code_executes_what_a_file_holds():
    sources = [path for folder in FOLDERS for path in sorted((CHECKOUT / folder).rglob("*.py"))]
    assert len(sources) > 200
    wrong = [f"{path.relative_to(CHECKOUT)}: {what}" for path in sources for what in complaints(path.read_text("utf-8"))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("line", [
    "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)", "eval(text)",
    "pickle.load(file)", "AutoModel.from_pretrained(name, trust_remote_code=True)", "import jinja2",
    "tokenizer.apply_chat_template(messages)", "subprocess.run(line, shell=True)", "from marshal import loads"])
def test_the_search_finds(line):
    assert complaints(line)


class Attack:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return Path.write_text, (Path("attacked"), "")


def test_a_pickle_runs_no_code(tmp_path, monkeypatch):
    from foredraft.engine.models.pickled import PickledTensors

    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Attack()}))
    with pytest.raises(UserError):
        PickledTensors(tmp_path)
    np.save(tmp_path / "tokens.npy", np.array([Attack()]), allow_pickle=True)
    from foredraft.train.drafter.fit_ngram import sequences

    with pytest.raises(UserError):
        list(sequences(tmp_path / "tokens.npy", "text", None))
    assert not (tmp_path / "attacked").exists()


def test_a_template_of_a_checkpoint_is_not_read(tmp_path, word_tokenizer):
    from foredraft.engine.models.tokenizer import load_tokenizer

    word_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ 1 / 0 }}"}))
    (tmp_path / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    assert load_tokenizer(tmp_path).encode("w3").tokens[0] == "\u2581w3"


@pytest.fixture
def bomb(tmp_path):
    """Half a gigabyte without a line end, in half a megabyte."""
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(b'{"article": "')
        for _ in range(512):
            file.write(b"a" * (1 << 20))
    assert path.stat().st_size < 1 << 20
    return path


def grown(call) -> int:
    """Bytes by which the largest memory of Python's objects grew in a call."""
    import tracemalloc

    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.full
def test_a_gzip_bomb_is_refused_before_it_is_in_memory(bomb):
    from foredraft.cli.generate_file import count_lines, read_texts
    from foredraft.train.data import pairs

    failed = []
    limit = 3 * (64 << 20)
    assert grown(lambda: list(read_texts(bomb, "article", lambda *why: failed.append(why)))) < limit
    assert failed and "longer than" in failed[0][2]
    assert grown(lambda: count_lines(bomb)) < limit

    def read_pairs():
        with pytest.raises(UserError, match="line 1: longer than"):
            list(pairs.read_texts(bomb, ("article",)))

    assert grown(read_pairs) < limit


def test_a_zip_bomb_is_refused_before_it_is_in_memory(tmp_path):
    """An .npz whose array is said to be larger than the file can justify."""
    from foredraft.train.data.pairs import read_saved_pairs

    path = tmp_path / "pairs.npz"
    entries = b"{'descr': '<u2', 'fortran_order': False, 'shape': (1099511627776,), }"
    head = b"\x93NUMPY\x01\x00v\x00" + entries.ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sources.npy", head + bytes(1000))

    def read():
        with pytest.raises(UserError, match="not a file of tokenised pairs"):
            read_saved_pairs(path)

    assert grown(read) < 64 << 20
