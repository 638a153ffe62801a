"""The files of deploy/ and the server agree: options, variables, paths of probes, and the time that an end takes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from twinvec.server import Limits
from twinvec.server.operations import OPERATIONS
from twinvec_cli.main import app
from twinvec_cli.serve import DEVICE_LOST

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
SERVE = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
VARIABLES = {option.envvar for option in SERVE.params if option.envvar} | {"TWINVEC_API_KEY"}


def instruction(name: str) -> str:
    """Return the last instruction of this name in the Dockerfile."""
    lines = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", " ").splitlines()
    return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")][-1]


def manifests() -> dict[str, Any]:
    """Return the Kubernetes objects by kind."""
    return {made["kind"]: made for made in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8"))}


def container() -> dict[str, Any]:
    found: list[dict[str, Any]] = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    return found[0]


def unit() -> dict[str, str]:
    lines = (DEPLOY / "twinvec.service").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


def test_commands_have_options_that_there_are() -> None:
    _, *image = json.loads(instruction("ENTRYPOINT"))
    service = unit()["ExecStart"].split()[3:]
    for arguments in ([*image, *json.loads(instruction("CMD"))], [*image, *container()["args"]], ["serve", *service]):
        assert arguments[0] == "serve"
        parsed = SERVE.make_context("serve", arguments[1:]).params
        assert parsed["models"]
        assert parsed["host"] == "0.0.0.0"  # noqa: S104 - what else is in a container
    with pytest.raises(Exception, match="No such option"):
        SERVE.make_context("serve", ["MODEL", "--no-such-option"])


def test_each_limit_is_an_option_and_a_variable() -> None:
    options = {option.name: option for option in SERVE.params}
    page = (REPOSITORY / "docs" / "server.md").read_text("utf-8")
    for name, default in asdict(Limits()).items():
        assert options[name].default == default
        assert options[name].envvar == f"TWINVEC_{name.upper()}"
        assert f"`--{name.replace('_', '-')}`" in page


def test_variables_are_read() -> None:
    given = {name for path in DEPLOY.iterdir() for name in re.findall(r"TWINVEC_[A-Z_]*[A-Z]", path.read_text("utf-8"))}
    assert "TWINVEC_UNREADY_SECONDS" in given
    assert given <= VARIABLES


def test_supervisors_wait_longer_than_an_end_takes() -> None:
    variables = {each["name"]: each.get("value") for each in container()["env"]}
    limits = Limits(unready_seconds=float(variables["TWINVEC_UNREADY_SECONDS"] or 0))
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["twinvec"]
    kubernetes = manifests()["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    for seconds in (kubernetes, compose["stop_grace_period"].removesuffix("s"), unit()["TimeoutStopSec"]):
        assert float(seconds) > limits.drain_seconds


def test_a_lost_device_starts_the_process_again() -> None:
    assert unit()["Restart"] == "on-failure"
    assert str(DEVICE_LOST) not in unit()["RestartPreventExitStatus"].split()


def test_probes_need_no_key() -> None:
    open_paths = {operation.path for operation in OPERATIONS if operation.open}
    probes = {name: probe["httpGet"]["path"] for name, probe in container().items() if name.endswith("Probe")}
    assert probes == {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"}
    assert set(probes.values()) <= open_paths
    assert "/health" in instruction("HEALTHCHECK")


def test_everything_selects_the_same_pods() -> None:
    made = manifests()
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert made["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert made["Service"]["spec"]["selector"] == labels
    assert made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert made["PodDisruptionBudget"]["spec"]["minAvailable"] < made["Deployment"]["spec"]["replicas"]


def test_the_image_installs_extras_that_there_are() -> None:
    installed = re.search(r"'\.\[([\w,]+)\]'", instruction("RUN"))
    assert installed is not None
    project = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    for extra in installed[1].split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    for path in instruction("COPY").split()[:-1]:
        assert (REPOSITORY / path).exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_reads_the_unit() -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", str(DEPLOY / "twinvec.service")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
