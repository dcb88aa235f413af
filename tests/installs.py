"""Builds the wheel and the source distribution of the last commit and tries them in new virtual environments.

`python -m tests.installs [--python PROGRAM] [--artefact wheel|sdist] [--extra NAME] [--first REQUIREMENT]`, all repeatable.
Each try installs, runs `pip check`, imports, summarises, uses what the extra is for, uninstalls, and looks for what is left.
Commands run in an empty folder, with no checkout on the path. Environments of one interpreter share their compiled kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
WITHOUT = "none"
# a build of llama.cpp takes minutes
PATIENCE = 3600
VARIABLES = {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1",
             # bytecode of files that are never imported would take most of the time
             "PIP_NO_COMPILE": "1"}
UNWANTED = ("PYTHONPATH", "PYTHONHOME", "NUMBA_CACHE_DIR", "FOREDRAFT_DATA")

IMPORT = "import time; began = time.perf_counter(); import foredraft; print(time.perf_counter() - began)"
# a server on a free port, and one request to it
REQUEST = """
import json, re, subprocess, sys, urllib.request
command = ["foredraft", "serve", "--port", "0", "--drafter", "lookup", *sys.argv[1:]]
server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
try:
    url = next(found[0] for line in server.stderr if (found := re.search(r"http://\\S+", line)))
    body = json.dumps({"model": "foredraft", "prompt": "The bridge is closed.", "max_tokens": 8}).encode()
    ask = urllib.request.Request(url + "v1/completions", body, {"content-type": "application/json"})
    assert json.load(urllib.request.urlopen(ask, timeout=300))["usage"]["completion_tokens"]
finally:
    server.terminate()
    server.communicate(timeout=300)
"""
# a kernel in Triton's interpreter: the second of four logits is the floor of top-k 2
TRITON = """
import torch
from foredraft.kernels.sampling.top_k_top_p_triton import top_k_top_p_triton
logits, zero, one = torch.tensor([[[1.0, 4.0, 3.0, 2.0]]]), torch.zeros(1, dtype=torch.int32), torch.ones(1)
floors, ties = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int32)
top_k_top_p_triton(logits, zero, zero.bool(), one, zero + 2, one, floors, ties)
assert floors.item() == 3.0, floors
"""
STEPS = "foredraft bench steps --geometry t5-small --weights fp32 --rows 1 --source 16 --repeats 1 --tokens 4 --out records"
# what each extra is for; {source} is the unpacked source
USES = {
    "train": (
        "foredraft pseudo --data pairs.jsonl --limit 2 --format parquet --out pseudo",
        "foredraft train --drafter lstm --data pairs.jsonl --pseudo-dataset-path pseudo --size hidden_size=32 --steps 2 "
        "--batch-size 2 --eval-every 2 --save-every 2 --validation pairs.jsonl --eval-articles 2 --out drafter",
        "python -c 'import foredraft.train.target.target_metrics'",
    ),
    "bench": (
        "foredraft bench run --methods plain,ctranslate2 --limit 1 --repeats 1 --max-new-tokens 8 --no-footprints "
        "--out records",
        "foredraft report records --out page",
        "python -m pytest --version",
    ),
    "llama-cpp": (f"{STEPS} --peers llama.cpp-q8_0",),
    "onnxruntime": (f"{STEPS} --peers onnxruntime-int8",),
    "gpu": (f"env TRITON_INTERPRET=1 python -c {shlex.quote(TRITON)}",),
    "ray": (f"python -c {shlex.quote(REQUEST)} --ray",),
    "serve": (f"python -c {shlex.quote(REQUEST)}",),
    "grammar": ("foredraft generate --text 'The bridge is closed.' --regex '[a-z]+ [a-z]+' --max-new-tokens 8",),
    "tune": ("foredraft tune-skip --data pairs.jsonl --limit 1 --trials 2 --max-new-tokens 8 --out skip.json",),
    "docs": ("python -m mkdocs build --quiet --strict --config-file {source}/mkdocs.yml --site-dir site",),
    "dev": ("python -m pytest -q -n0 -p no:cacheprovider {source}/tests/foredraft/test_public_api.py",
            "ruff check {source}/foredraft", "mypy --version", "codespell --version"),
}
# without any extra, each of these ends in one line that names the extra it needs
REFUSED = {
    "train": "foredraft train --drafter lstm --data pairs.jsonl --out drafter",
    "bench": "foredraft report pairs.jsonl --out page",
    "ray": "foredraft pseudo --data pairs.jsonl --ray-address auto --out pseudo",
    "serve": "foredraft serve --port 0",
    "grammar": "foredraft generate --text 'The bridge is closed.' --regex '[a-z]+'",
    "tune": "foredraft tune-skip --data pairs.jsonl --out skip.json",
}


class Failure(Exception):
    """A step of a try went wrong; one line."""


def run(line: list[str | Path], cwd: Path, **variables: str) -> str:
    """Stdout of a command that must succeed. Failure."""
    kept = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    words = [str(word) for word in line]
    try:
        done = subprocess.run(words, cwd=cwd, env=kept | VARIABLES | variables, capture_output=True, text=True,
                              timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(f"{shown(words)}: {error}") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise Failure(f"{shown(words)}: exit code {done.returncode}: {last}")
    return done.stdout


def shown(words: list[str]) -> str:
    """A command as one short line."""
    line = " ".join(" ".join(words).split())
    return line if len(line) <= 80 else line[:80] + "..."


@dataclass
class Built:
    """What is installed: files by artefact, the source that they were made from, and its version."""

    files: dict[str, Path]
    source: Path
    version: str


def build(folder: Path) -> Built:
    """The last commit as a source distribution, and the wheel that is built from that."""
    source, out, python = folder / "source", folder / "built", folder / "builder" / "bin" / "python"
    source.mkdir()
    run(["git", "archive", "--output", folder / "commit.tar", "HEAD"], CHECKOUT)
    shutil.unpack_archive(folder / "commit.tar", source, filter="data")
    run([sys.executable, "-m", "venv", folder / "builder"], folder)
    run([python, "-m", "pip", "install", "build"], folder)
    run([python, "-m", "build", "--outdir", out, source], folder)
    wheel, sdist = next(out.glob("*.whl")), next(out.glob("*.tar.gz"))
    return Built({"wheel": wheel, "sdist": sdist}, source, wheel.name.split("-")[1])


class Environment:
    """A virtual environment, a working folder beside it, and a cache that the environments of one interpreter share.

    The first environment of an interpreter is made with the requirements `first`; the others are copies of it.
    """

    def __init__(self, program: str, folder: Path, first: list[str]):
        # one path for all environments of an interpreter: numba finds a compiled kernel by its file's path
        self.folder, self.work, self.cache = folder / "environment", folder / "work", folder / "cache"
        self.python = self.folder / "bin" / "python"
        for stale in (self.folder, self.work):
            shutil.rmtree(stale, ignore_errors=True)
        self.work.mkdir(parents=True)
        clean = folder / "clean"
        if clean.exists():
            shutil.copytree(clean, self.folder, symlinks=True, copy_function=os.link)
            return
        run([program, "-m", "venv", self.folder], self.work)
        if first:
            self.pip("install", *first)
        shutil.copytree(self.folder, clean, symlinks=True, copy_function=os.link)

    def pip(self, *words: str | Path) -> float:
        """Run pip; seconds."""
        began = time.monotonic()
        run([self.python, "-m", "pip", *words], self.work)
        return time.monotonic() - began

    def command(self, line: str) -> str:
        """Stdout of a command in the working folder, which finds this environment's programs first."""
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return run(shlex.split(line), self.work, PATH=path, XDG_CACHE_HOME=str(self.cache))

    def share_kernels(self) -> None:
        """Give the installed files one time: numba compiles a kernel again if its file's time is another."""
        for file in self.folder.glob("lib/python*/site-packages/foredraft/**/*.py"):
            os.utime(file, (1, 1))


def attempt(environment: Environment, built: Built, artefact: str, extra: str) -> tuple[float, float]:
    """Install, use and remove an artefact; seconds of the installation and of `import foredraft`. Failure."""
    wanted = str(built.files[artefact]) + ("" if extra == WITHOUT else f"[{extra}]")
    installed = environment.pip("install", wanted)
    environment.pip("check")
    version = environment.command("foredraft --version").strip()
    if version != f"foredraft {built.version}":
        raise Failure(f"foredraft --version: {version!r}, expected {built.version}")
    imported = min(float(environment.command(f"python -c '{IMPORT}'")) for _ in range(3))
    environment.share_kernels()
    texts = [file.read_text() for file in sorted((built.source / "assets" / "texts").glob("*.txt"))]
    if not environment.command(f"foredraft summarize --text {shlex.quote(texts[0])}").strip():
        raise Failure("foredraft summarize: an empty summary")
    pairs = [json.dumps({"article": text, "highlights": text.split(".")[0]}) + "\n" for text in texts]
    (environment.work / "pairs.jsonl").write_text("".join(pairs))
    if extra == WITHOUT:
        for needed, line in REFUSED.items():
            check_refused(environment, line, needed)
    for line in USES.get(extra, ()):
        environment.command(line.replace("{source}", shlex.quote(str(built.source))))
    environment.pip("uninstall", "--yes", "foredraft")
    if left := sorted(str(path.relative_to(environment.folder)) for path in environment.folder.rglob("*foredraft*")):
        raise Failure(f"pip uninstall: {left[0]} is left, of {len(left)}")
    return installed, imported


def check_refused(environment: Environment, line: str, extra: str) -> None:
    """Run a command that lacks an extra. Failure: it ends in anything but exit code 2 and the extra's name."""
    try:
        environment.command(line)
    except Failure as error:
        if "exit code 2: " in str(error) and f"foredraft[{extra}]" in str(error):
            return
        raise
    raise Failure(f"{line}: runs without the extra {extra}")


def main() -> None:
    """Print a line for each try; exit code 1 if one fails."""
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", help="an interpreter's program; default: this one; repeatable")
    parser.add_argument("--artefact", action="append", choices=("wheel", "sdist"), help="default: wheel; repeatable")
    parser.add_argument("--extra", action="append", choices=(WITHOUT, *extras), help=f"default: {WITHOUT}; repeatable")
    parser.add_argument("--first", action="append", default=[], metavar="REQUIREMENT",
                        help="installed before foredraft, such as a build of torch for CPUs; repeatable")
    given = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            built = build(folder)
        except Failure as error:
            sys.exit(str(error))
        print("| Python | artefact | extra | install, s | import, s | result |\n|---|---|---|---|---|---|")
        for number, program in enumerate(given.python or [sys.executable]):
            for artefact in given.artefact or ["wheel"]:
                for extra in given.extra or [WITHOUT]:
                    interpreter, seconds, result = program, "| | |", "passed"
                    try:
                        environment = Environment(program, folder / str(number), given.first)
                        interpreter = run([environment.python, "-c", "import platform; print(platform.python_version())"],
                                          folder).strip()
                        seconds = "| {:.0f} | {:.3f} |".format(*attempt(environment, built, artefact, extra))
                    except Failure as error:
                        failed += 1
                        result = str(error).replace("|", "\\|")
                    print(f"| {interpreter} | {artefact} | {extra} {seconds} {result} |", flush=True)
            # gigabytes, with a torch for GPUs
            shutil.rmtree(folder / str(number), ignore_errors=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
