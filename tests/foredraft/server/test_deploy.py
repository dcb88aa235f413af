"""The files in deploy/: they parse, and name what exists."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


def test_the_dashboard_shows_metrics_that_exist(server):
    server.call("/v1/completions", {"prompt": "w5 w6 w5 w6 w5 w6", "max_tokens": 30})
    found = set(re.findall(r"^(\w+:\w+)", server.call("/metrics")[1], re.M))
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) > 10 and all(query.count("(") == query.count(")") for query in queries)
    assert {name for query in queries for name in re.findall(r"(?:vllm|foredraft):\w+", query)} <= found


def test_yaml_and_the_grace_to_stop():
    yaml = pytest.importorskip("yaml")
    found = {path.name: yaml.safe_load(path.read_text()) for path in [*DEPLOY.glob("*.yaml"), *DEPLOY.glob("*.yml")]}
    services = found["compose.yaml"]["services"]
    for volume in services["prometheus"]["volumes"] + services["grafana"]["volumes"]:
        assert (DEPLOY / volume.split(":")[0]).is_file()
    assert (DEPLOY / services["foredraft"]["build"]["context"] / services["foredraft"]["build"]["dockerfile"]).is_file()
    from foredraft.server.settings import ServerSettings

    assert int(services["foredraft"]["stop_grace_period"].rstrip("s")) > ServerSettings.shutdown_timeout
    assert found["prometheus.yml"]["scrape_configs"][0]["static_configs"][0]["targets"] == ["foredraft:8000"]


def test_their_commands_parse():
    import typer

    from foredraft.cli.serve import serve

    app = typer.Typer()
    app.command()(serve)
    unit = (DEPLOY / "foredraft.service").read_text()
    line = shlex.split(re.search(r"^ExecStart=(.*)$", unit, re.M)[1])
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", (DEPLOY / "Dockerfile").read_text(), re.M)[1])
    for words in (line, entry):
        assert words[0].endswith("foredraft") and words[1] == "serve"
        typer.main.get_command(app).make_context("serve", words[2:])
    if shutil.which("systemd-analyze"):
        done = subprocess.run(["systemd-analyze", "verify", DEPLOY / "foredraft.service"], capture_output=True, text=True)
        assert "Unknown" not in done.stderr
