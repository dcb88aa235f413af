"""Every way to import foredraft: bare checkout, editable install, wheel, sdist, a checkout without symbolic links.

Each copy of the checkout lies in a temporary folder. Installs go into a virtual environment that sees this environment's
packages through a .pth file, so that nothing is downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import foredraft

CHECKOUT = Path(__file__).resolve().parents[2]
LINKS = ("engine", "kernels", "ngram_native", "train", "bench", "assets")
# imports a module of every room, reads the embedded model's folder and prints where the package lies
PROBE = (
    "import foredraft, foredraft.kernels.core.backend, foredraft.ngram_native.prompt_lookup.source_index as index, "
    "foredraft.train.data.pairs, foredraft.bench.harness.cases as cases\n"
    "from importlib.resources import files\n"
    "from foredraft import embedded\n"
    "assert files('foredraft.server').joinpath('page.html').is_file()\n"
    "assert (embedded.TARGET / 'config.json').is_file() and cases.sample_texts(), embedded.TARGET\n"
    "print(foredraft.__version__, foredraft.__file__, index.__name__)\n"
)


def run(*arguments: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Stdout of a command that must succeed. PYTHONPATH is `path` alone."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    line = [str(argument) for argument in arguments]
    done = subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the files that git tracks or would track, links kept."""
    folder = tmp_path_factory.mktemp("checkout")
    if (CHECKOUT / ".git").exists():
        names = run("git", "ls-files", "-co", "--exclude-standard", cwd=CHECKOUT).splitlines()
    else:
        names = [path.relative_to(CHECKOUT).as_posix() for path in CHECKOUT.rglob("*")
                 if (path.is_file() or path.is_symlink()) and ".venv" not in path.parts]
    for name in names:
        if not os.path.lexists(CHECKOUT / name):
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # the weights are large: linked, and copied only into wheels
        if name.endswith((".safetensors", ".ngram")):
            os.symlink(CHECKOUT / name, folder / name)
        else:
            shutil.copy(CHECKOUT / name, folder / name, follow_symlinks=False)
    return folder


@pytest.fixture
def environment(tmp_path) -> Path:
    """The python of a new virtual environment that sees this environment's packages, foredraft left out."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False)
    ours, theirs = Path(sysconfig.get_paths()["purelib"]), next(folder.glob("lib/python*/site-packages"))
    seen = tmp_path / "seen"
    seen.mkdir()
    for entry in ours.iterdir():
        if "foredraft" not in entry.name and not entry.name.startswith("__editable__"):
            (seen / entry.name).symlink_to(entry)
    (theirs / "seen.pth").write_text(f"{seen}\n")
    return folder / "bin" / "python"


def probe(python: str | Path, cwd: Path, path: Path | None = None) -> list[str]:
    """Version, file and module name that PROBE prints."""
    return run(python, "-c", PROBE, cwd=cwd, path=path).split()


def install(python: Path, *arguments: str | Path, cwd: Path) -> None:
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", *arguments, cwd=cwd)


def test_a_bare_checkout(checkout, tmp_path):
    version, file, name = probe(sys.executable, tmp_path, path=checkout)
    assert version == foredraft.__version__ and Path(file) == checkout / "foredraft" / "__init__.py"
    assert name == "foredraft.ngram_native.prompt_lookup.source_index"
    assert run(sys.executable, "-m", "foredraft", "--version", cwd=checkout) == f"foredraft {version}\n"


def test_a_checkout_without_symbolic_links(checkout, tmp_path):
    """git writes a link as a small text file where the system has none."""
    plain = tmp_path / "plain"
    shutil.copytree(checkout, plain, symlinks=True)
    for name in LINKS:
        target = os.readlink(plain / "foredraft" / name)
        (plain / "foredraft" / name).unlink()
        (plain / "foredraft" / name).write_text(target)
    assert Path(probe(sys.executable, tmp_path, path=plain)[1]).is_relative_to(plain)
    assert run(sys.executable, "-m", "foredraft", "--version", cwd=plain).startswith("foredraft ")


def test_links_lead_to_the_rooms():
    """Editors and type checkers follow foredraft.engine.x through foredraft/engine."""
    for name in LINKS:
        link = CHECKOUT / "foredraft" / name
        assert link.is_symlink() and os.readlink(link) == f"../{name}"


@pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="not a git checkout")
def test_an_archive_keeps_the_links(tmp_path):
    run("git", "archive", "-o", tmp_path / "archive.tar", "HEAD", "foredraft", cwd=CHECKOUT)
    with tarfile.open(tmp_path / "archive.tar") as archive:
        links = {entry.name: entry.linkname for entry in archive.getmembers() if entry.issym()}
    assert links == {f"foredraft/{name}": f"../{name}" for name in LINKS}


def test_the_version_has_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", foredraft.__version__)
    project = (CHECKOUT / "pyproject.toml").read_text()
    assert 'attr = "foredraft.__version__"' in project and f'"{foredraft.__version__}"' not in project


def test_an_import_loads_no_library():
    """Seconds of the processor, the best of three: other processes of the machine do not count."""
    script = "import time; began = time.process_time(); import foredraft; print(time.process_time() - began)"
    assert min(float(run(sys.executable, "-c", script, cwd=CHECKOUT)) for _ in range(3)) < 0.3


def test_the_licences_of_all_dependencies_are_known():
    from foredraft.bench.report import licences

    known = {name: licences.licence(found) for name, found in licences.dependencies().items()}
    assert {"torch", "transformers", "numpy", "numba", "filelock", "sympy"} <= set(known)
    assert not [name for name, licence in known.items() if licence == "not stated" or "GPL" in licence.replace("LGPL", "")]


@pytest.mark.full
def test_an_editable_install(checkout, environment, tmp_path):
    install(environment, "-e", checkout, cwd=tmp_path)
    version, file, _ = probe(environment, tmp_path)
    assert Path(file) == checkout / "foredraft" / "__init__.py"
    assert run(environment.with_name("foredraft"), "--version", cwd=tmp_path) == f"foredraft {version}\n"
    # a folder that is added later is found without another install
    (checkout / "engine" / "later").mkdir()
    (checkout / "engine" / "later" / "module.py").write_text("FOUND = True\n")
    run(environment, "-c", "from foredraft.engine.later.module import FOUND", cwd=tmp_path)
    shutil.rmtree(checkout / "engine" / "later")


@pytest.mark.full
def test_a_wheel_from_a_source_distribution(checkout, environment, tmp_path):
    """sdist -> wheel -> install; a wheel from the checkout has the same files."""
    built = tmp_path / "built"
    build = "import sys, setuptools.build_meta as m; print(getattr(m, sys.argv[1])(sys.argv[2]))"
    sdist = run(environment, "-c", build, "build_sdist", built, cwd=checkout).splitlines()[-1]
    with tarfile.open(built / sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / sdist.removesuffix(".tar.gz")
    wheels = []
    for folder, out in ((source, built / "sdist"), (checkout, built / "checkout")):
        wheels.append(out / run(environment, "-c", build, "build_wheel", out, cwd=folder).splitlines()[-1])
    names = [sorted(zipfile.ZipFile(wheel).namelist()) for wheel in wheels]
    assert names[0] == names[1]
    assert {"foredraft/engine/loop.py", "foredraft/kernels/core/philox.py", "foredraft/assets/target/config.json",
            "foredraft/cli/main.py"} <= set(names[0])
    assert not [name for name in names[0] if name.startswith(("engine", "tests", "foredraft/tests"))]
    install(environment, wheels[0], cwd=tmp_path)
    version, file, _ = probe(environment, tmp_path)
    assert "site-packages" in file
    assert run(environment.with_name("foredraft"), "--version", cwd=tmp_path) == f"foredraft {version}\n"
    # compiled kernels are kept, but not where the package lies
    compiled = ("import numpy as np; from foredraft.ngram_native.counts import same_window; "
                "print(same_window(np.zeros((1, 1), np.uint64), 0, 0))")
    assert run(environment, "-c", compiled, cwd=tmp_path) == "True\n"
    run(environment, "-m", "pip", "uninstall", "--yes", "--quiet", "foredraft", cwd=tmp_path)
    packages = next(environment.parents[1].glob("lib/python*/site-packages"))
    assert not [path.name for path in packages.iterdir() if "foredraft" in path.name]
