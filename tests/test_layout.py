"""The rooms: who may import whom, no `__init__.py` in them, and no clash with Hugging Face's `kernels` package."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
ROOMS = ("engine", "kernels", "ngram_native", "train", "bench")
# files that every room may import
LEAVES = {"foredraft.errors", "foredraft.memory", "foredraft.atomic_write", "foredraft.json_file", "foredraft.output_lock",
          "foredraft.text_lines", "foredraft.embedded", "foredraft.__version__"}
# what the files of a folder may import of ours: prefixes of dotted names; the longest folder that matches decides
ALLOWED = {
    "kernels/core": ["kernels.core"],
    "kernels/step": ["kernels.core", "kernels.step"],
    "kernels/sampling": ["kernels.core", "kernels.sampling"],
    "kernels/model": ["kernels.core", "kernels.model"],
    "kernels/verify": ["kernels.core", "kernels.step", "kernels.sampling", "kernels.verify"],
    "kernels/drafting": ["kernels.core", "kernels.step", "kernels.sampling", "kernels.model", "kernels.drafting"],
    "ngram_native": ["ngram_native", "kernels.core"],
    "engine": ["engine.checks", "engine.params", "engine.protocols", "engine.loop", "engine.state", "engine.verify",
               "engine.verify_cuda", "engine.stats", "kernels"],
    "engine/models": ["engine.models", "kernels"],
    "engine/sampling": ["engine.sampling", "engine.clock", "engine.params", "engine.state", "kernels"],
    "engine/draft_length": ["engine.draft_length", "engine.clock", "engine.protocols", "engine.params", "engine.state",
                            "kernels"],
    "engine/drafters": ["engine.drafters", "engine.loop", "engine.draft_length", "engine.models", "engine.sampling",
                        "engine.protocols", "engine.params", "engine.state", "kernels", "ngram_native"],
    "engine/runtime": ["engine.runtime", "engine.arguments", "engine.clock", "engine.sampling", "engine.protocols",
                       "engine.params", "engine.loop", "engine.state", "engine.verify_cuda", "engine.stats",
                       "engine.threads", "kernels"],
    "train": ["train", "engine", "kernels", "ngram_native"],
    "train/data": ["train.data", "engine", "kernels"],
    "train/target": ["train.target", "train.data", "train.trainer", "train.history", "train.run_folder", "engine",
                     "kernels"],
    "train/drafter": ["train.drafter", "train.data", "train.trainer", "train.history", "train.run_folder",
                      "train.draft_vocab", "engine", "kernels", "ngram_native"],
    "train/tune": ["train.tune", "train.draft_vocab", "engine", "kernels"],
    "bench": ["bench", "train", "engine", "kernels", "ngram_native"],
    # scripts: they read options and print tables as the commands do
    "bench/studies": ["bench", "train", "engine", "kernels", "ngram_native", "cli"],
    "bench/gpu": ["bench", "train", "engine", "kernels", "ngram_native", "cli"],
}
# see everything below them
FREE = {"engine/load.py", "engine/generate.py", "engine/output.py", "engine/transformers_model.py", "engine/score.py"}
TRANSFORMERS = {
    "engine/models/tokenizer.py", "engine/drafters/neural/t5_drafter.py",
    "engine/transformers_model.py", "bench/studies/trainer_evaluation.py", "bench/harness/methods.py",
    "bench/studies/transformers_handler.py",
    "bench/harness/peers/step_peers.py", "bench/gpu/transformers_peer.py", "bench/harness/peers/ctranslate2_peer.py",
}


def imports(source: str) -> list[str]:
    """Dotted names a file imports anywhere, functions included; `from a import b` is a.b, `from . import b` is `.`."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += ["."] if node.level else [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def complaint(path: str, name: str) -> str | None:
    """Why the file at `path` (relative to the checkout) may not import `name`; None if it may."""
    room, top = path.split("/")[0], name.split(".")[0]
    if top in ("", *ROOMS, "tests"):
        return f"{name}: import it as foredraft.*"
    if top == "transformers":
        free = room in ("train", "tests") or path in TRANSFORMERS
        return None if free else "transformers has its own few files"
    if top != "foredraft" or room in ("foredraft", "tests") or path in FREE or Path(path).name.startswith("test_"):
        return None
    folder = max((folder for folder in ALLOWED if path.startswith(folder + "/")), key=len)
    inner = name.removeprefix("foredraft.")
    if any(name == leaf or name.startswith(leaf + ".") for leaf in LEAVES):
        return None
    if any(inner == prefix or inner.startswith(prefix + ".") for prefix in ALLOWED[folder]):
        if "drafters.cuda" in inner and path.startswith(("engine/", "train/")) and "drafters/cuda/" not in path:
            return "only the registry names drafters of CUDA, as text"
        return None
    return f"{folder} may not import {name}"


def sources() -> list[Path]:
    return sorted(path for folder in (*ROOMS, "foredraft", "tests") for path in (CHECKOUT / folder).rglob("*.py"))


def test_import_directions():
    wrong = []
    for path in sources():
        relative = path.relative_to(CHECKOUT).as_posix()
        wrong += [f"{relative}: {why}" for name in imports(path.read_text()) if (why := complaint(relative, name))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("path", "line"), [
    ("kernels/model/norm.py", "from foredraft.engine.state import Draft"),
    ("engine/models/t5.py", "import foredraft.bench.harness.cases"),
    ("engine/models/t5.py", "def f():\n    from transformers import T5Config"),
    ("engine/models/t5.py", "from foredraft import load"),
    ("engine/runtime/scheduler.py", "from foredraft.engine.models.t5 import T5"),
    ("engine/runtime/scheduler.py", "from foredraft.engine.drafters.registry import make_drafter"),
    ("engine/loop.py", "from foredraft.engine.drafters.none import NoDrafter"),
    ("engine/drafters/lookup.py", "from foredraft.engine.runtime.scheduler import Scheduler"),
    ("engine/drafters/registry.py", "from foredraft.engine.drafters.cuda.lookup_cuda import LookupDrafterCuda"),
    ("train/data/pairs.py", "from kernels import norm"),
    ("bench/harness/cases.py", "from . import methods"),
    ("foredraft/cli/main.py", "import engine"),
])
def test_the_rules_catch(path, line):
    assert any(complaint(path, name) for name in imports(line))


@pytest.mark.parametrize("room", [*ROOMS, "assets"])
def test_no_init_in_a_room(room):
    assert not list((CHECKOUT / room).rglob("__init__.py"))


def run(script: str, *, site: Path, cwd: Path, args: tuple[str, ...] = ("-c",), path: tuple[Path, ...] = ()) -> str:
    """Run `python ARGS SCRIPT` in `cwd` with `site` as an extra site directory; its stdout. Fails with its stderr."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, site))), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *args, script], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A stand-in site directory in which Hugging Face's `kernels` package seems to be installed."""
    site = tmp_path_factory.mktemp("site")
    package = site / "kernels"
    package.mkdir()
    package.joinpath("__init__.py").write_text(
        "HERE = 'the hub package'\n"
        "class _Anything:\n"
        "    def __init__(self, *a, **k): pass\n"
        "    def __call__(self, thing, *a, **k): return thing\n"
        "    def __getattr__(self, name): return self\n"
        "def __getattr__(name):\n"
        "    if name.startswith('__'): raise AttributeError(name)\n"
        "    return _Anything\n"
    )
    information = site / "kernels-99.0.dist-info"
    information.mkdir()
    information.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 99.0\n")
    return site


PROBE = """
import foredraft, kernels
from transformers import T5Config, T5ForConditionalGeneration
assert kernels.HERE == 'the hub package', kernels
from foredraft.engine.state import Draft
assert Draft.__module__ == 'foredraft.engine.state'
print('fine')
"""


@pytest.mark.full
def test_beside_the_hub_package_with_python_m(site):
    probe = site / "layout_probe.py"
    probe.write_text(PROBE)
    assert run("layout_probe", site=site, cwd=CHECKOUT, args=("-m",)).strip() == "fine"


@pytest.mark.full
def test_beside_the_hub_package_under_pytest(site, tmp_path):
    test = tmp_path / "test_probe.py"
    test.write_text("def test_probe():\n" + "".join(f"    {line}\n" for line in PROBE.splitlines()))
    run(str(test), site=site, cwd=CHECKOUT,
        args=("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(CHECKOUT / "pyproject.toml")))


def test_beside_the_hub_package_as_an_editable_install(site, tmp_path):
    """What setuptools writes for an editable install with a mapping: a finder for the top package alone."""
    site_editable = tmp_path / "editable"
    site_editable.mkdir()
    (site_editable / "sitecustomize.py").write_text(
        "import sys\n"
        "from importlib.util import spec_from_file_location\n"
        f"HOME = {str(CHECKOUT / 'foredraft' / '__init__.py')!r}\n"
        "class Finder:\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        return spec_from_file_location(name, HOME) if name == 'foredraft' else None\n"
        "sys.meta_path.append(Finder)\n"
    )
    assert run(PROBE, site=site, cwd=tmp_path, path=(site_editable,)).strip() == "fine"


def test_importing_foredraft_is_light():
    script = (
        "import sys, foredraft, foredraft.cli.main\n"
        "print([name for name in ('torch', 'transformers', 'triton', 'numba') if name in sys.modules])"
    )
    assert run(script, site=CHECKOUT, cwd=CHECKOUT).strip() == "[]"


def test_the_engine_does_not_import_transformers():
    script = "import sys, foredraft.engine.generate\nprint('transformers' in sys.modules)"
    assert run(script, site=CHECKOUT, cwd=CHECKOUT).strip() == "False"


def test_compiled_kernels_are_cached_in_the_users_folder():
    """numba itself caches beside the sources: what it leaves there survives an uninstall."""
    wrong = [path for path in sources() for name in imports(path.read_text()) if name in ("numba.njit", "numba.jit")]
    assert wrong == []
