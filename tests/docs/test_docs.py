"""README and docs/: commands parse and the cheap ones run, examples run, links and pictures exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$",
    re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\((?P<to>[^)\s]+)\)")
# programs whose arguments are not ours
OTHERS = ("pip", "make", "git", ".venv/bin/python", "bash", "./generate_peudodataset_multigpus.sh", "cat")


@dataclass(frozen=True)
class Block:
    """A fenced block. `mark` is the HTML comment on the line above: "run", or "example: FILE"."""

    page: str
    mark: str
    language: str
    body: str


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        for match in FENCE.finditer(page.read_text(encoding="utf-8")):
            found.append(Block(page.name, match["mark"] or "", match["language"], match["body"]))
    return found


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block, as words; a pipe is split, comments and assignments in front are dropped."""
    found = []
    for line in block.body.replace("\\\n", " ").splitlines():
        for part in line.split(" | "):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


def is_shell(block: Block) -> bool:
    return block.language == "bash" or (not block.language and block.body.lstrip().startswith("foredraft "))


def shown() -> list[tuple[str, list[str]]]:
    return [(block.page, words) for block in blocks() if is_shell(block) for words in commands(block)]


def parse(words: list[str]) -> None:
    """Parse the arguments of `foredraft` as the command line does, without running the command."""
    import typer

    from foredraft.cli.main import app

    command, context, rest = typer.main.get_command(app), None, words
    while True:
        context = command.make_context(command.name or "foredraft", list(rest), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        left = [*getattr(context, "_protected_args", []), *context.args]
        if not left:
            raise typer.BadParameter("a command is missing")
        _, command, rest = command.resolve_command(context, left)


def test_every_command_parses():
    import typer

    # the base of every error in an argument; typer brings a click of its own
    mistake = typer.BadParameter.__mro__[2]
    wrong = []
    for page, words in shown():
        if words[0] == "foredraft" or words[:3] == ["python", "-m", "foredraft"]:
            try:
                parse(words[1:] if words[0] == "foredraft" else words[3:])
            except (mistake, typer.Exit) as error:
                wrong.append(f"{page}: {shlex.join(words)}: {getattr(error, 'message', 'it prints help')}")
        elif words[:2] == ["python", "run.py"]:
            assert words[-1] == "run", f"{page}: {words}"
            parse(words[2:-1])
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]) is not None, f"{page}: no module {words[2]}"
        else:
            assert words[0] in OTHERS, f"{page}: a program that this test does not know: {shlex.join(words)}"
    assert not wrong, "\n".join(wrong)


def test_every_make_target_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    asked = {words[1] for _, words in shown() if words[0] == "make"}
    assert asked and asked <= targets


def modules() -> dict[str, set[str]]:
    """The options shown for each `python -m foredraft...` module."""
    found: dict[str, set[str]] = {}
    for _, words in shown():
        if words[:2] == ["python", "-m"] and words[2] != "foredraft":
            found.setdefault(words[2], set()).update(word for word in words[3:] if word.startswith("--"))
    return found


def test_options_of_scripts_exist(monkeypatch, capsys):
    found = modules()
    assert found
    monkeypatch.setenv("COLUMNS", "200")
    for module, options in found.items():
        monkeypatch.setattr(sys, "argv", [module, "--help"])
        # a module that another test imported is run anew
        monkeypatch.delitem(sys.modules, module, raising=False)
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(module, run_name="__main__")
        assert not stop.value.code, module
        shown = capsys.readouterr().out
        assert all(option in shown for option in options), f"{module}: {options} are not all in its help"


def cheap() -> list:
    found = [(block.page, line) for block in blocks() if block.mark == "run" for line in block.body.splitlines()
             if line.startswith(("foredraft", "cat"))]
    assert found
    return [pytest.param(line, id=f"{page}-{number}") for number, (page, line) in enumerate(found)]


@pytest.mark.parametrize("line", cheap())
def test_cheap_commands_run(line, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    stdin = b""
    if line.startswith("cat "):
        name, line = line.removeprefix("cat ").split(" | ")
        stdin = Path(name).read_bytes()
    words = shlex.split(line, comments=True)
    code, out, error = command(*words[1:], stdin=stdin)
    assert code == 0, error
    assert out


def examples() -> dict[str, dict[str, str]]:
    """The example files of each page: name -> text."""
    found: dict[str, dict[str, str]] = {}
    for block in blocks():
        if block.mark.startswith("example: "):
            files = found.setdefault(block.page, {})
            name = block.mark.removeprefix("example: ")
            files[name] = files.get(name, "") + block.body
    return found


@pytest.mark.parametrize("page", list(examples()))
def test_examples_run(page, tmp_path, monkeypatch):
    import foredraft
    from foredraft.engine.drafters import registry
    from foredraft.engine.models import spec
    from foredraft.kernels.core import backend

    monkeypatch.chdir(ROOT)
    # compiled examples are not worth keeping
    monkeypatch.setattr(backend, "_IS_CACHED", False, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    # files of a room are found as its own are
    monkeypatch.setattr(foredraft, "__path__", [*foredraft.__path__, str(tmp_path)])
    files = examples()[page]
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    importlib.invalidate_caches()
    before, tables = set(sys.modules), (registry.ENTRIES, spec.FAMILIES)
    entries, proposers = [dict(table) for table in tables], list(registry.PROPOSERS)
    try:
        for name in files:
            if Path(name).name.startswith("test_"):
                tests = [value for key, value in runpy.run_path(str(tmp_path / name)).items() if key.startswith("test_")]
                assert tests
                for test in tests:
                    test()
            elif "/" not in name:
                importlib.import_module(Path(name).stem)
    finally:
        # what a page registers is gone afterwards
        for table, known in zip(tables, entries, strict=True):
            table.clear()
            table.update(known)
        registry.PROPOSERS[:] = proposers
        for name in set(sys.modules) - before:
            if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def test_every_python_block_is_python():
    for block in blocks():
        if block.language == "python":
            ast.parse(block.body)


def test_links_lead_somewhere():
    wrong = []
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for match in LINK.finditer(text):
            to = match["to"].partition("#")[0]
            if to and not to.startswith(("http:", "https:", "mailto:")) and not (page.parent / to).exists():
                wrong.append(f"{page.name}: {match['to']}")
    assert not wrong, "\n".join(wrong)


def test_files_named_in_the_text_exist():
    # GROUP, NAME and x stand for any name; an example's own files are not in the tree
    wrong, ours = [], {name for files in examples().values() for name in files}
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for path in re.findall(r"`((?:assets|bench|engine|foredraft|kernels|ngram_native|tests|train)/[\w./-]+)`", text):
            if path not in ours and not re.search(r"GROUP|NAME|/x_|/x\.|test_x", path) and not (ROOT / path).exists():
                wrong.append(f"{page.name}: {path}")
    assert not wrong, "\n".join(wrong)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 170


def test_every_public_name_has_a_reference():
    import foredraft

    named = {line.rpartition(".")[2] for line in (ROOT / "docs/api.md").read_text().splitlines() if line.startswith("::: ")}
    assert named == set(foredraft.__all__) - {"__version__"}


def test_every_page_is_in_the_navigation():
    navigation = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert sorted(navigation) == sorted(page.name for page in PAGES[1:])


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").glob("*.html"):
        fetched = re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)=["']?(https?://[^"'\s>]+)""", page.read_text())
        assert not [address for address in fetched if "canonical" not in address], page.name
