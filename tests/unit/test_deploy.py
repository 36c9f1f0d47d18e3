"""What `deploy/` promises, as far as it can be told without a container engine, a Grafana or a root shell."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.settings import Settings
from tests.unit.test_env_example import listed, names_of

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SETTINGS = {name for field in Settings.model_fields for name in names_of(field)}


def instructions(stage: str | None = None) -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, or of one stage."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.M))
    found = [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]
    if stage is not None:
        names = [(i, words[1].rpartition(" AS ")[2] if words[0] == "FROM" else "") for i, words in enumerate(found)]
        start = next(i for i, name in names if name == stage)
        end = next((i for i, name in names if name and i > start), len(found))
        found = found[start:end]
    return [(words[0], words[1]) for words in found]


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def test_the_image_runs_as_nobody_in_particular() -> None:
    runtime = dict(instructions("runtime"))
    assert runtime["USER"] == "10001:10001"
    assert runtime["VOLUME"] == "/var/lib/gateway"
    assert "/readyz" in runtime["HEALTHCHECK"]
    assert json.loads(runtime["ENTRYPOINT"]) == ["gateway"]
    order = [name for name, _ in instructions()]
    assert "USER" not in order[: order.index("ENTRYPOINT") - 1], "nothing after USER may need root"


def test_the_default_image_has_no_torch() -> None:
    assert instructions()[-2:] == instructions("slim")
    assert instructions("slim")[1] == ("COPY", "--from=slim-packages /opt/gateway /opt/gateway")
    assert not any("torch" in text.lower() or "[local" in text for _, text in instructions("slim-packages"))
    assert ("ARG", "TORCH=torch==2.13.0") in instructions("local-packages")


def test_only_what_is_built_reaches_the_builder() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        source
        for stage in ("wheel", "native", "slim-packages", "local-packages")
        for name, text in instructions(stage)
        if name == "COPY" and not text.startswith("--from")
        for source in text.split()[:-1]
    }
    assert "**" in ignored
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_compose_has_no_password_of_its_own() -> None:
    for service in compose()["services"].values():
        for name, value in service.get("environment", {}).items():
            if value is not None and re.search("PASSWORD|SECRET|DATABASE_URL", name):
                assert re.search(r"\$\{[A-Z_]+:\?[^}]+\}", value), f"{name} must be required"
                assert ":-" not in value


def test_compose_passes_every_setting_on() -> None:
    """A line in deploy/.env that did nothing would be believed. Nothing else of that file gets there: it holds others' passwords too."""
    environment = compose()["services"]["gateway"]["environment"]
    of_the_image = {"HOST", "PORT", "GATEWAY_HOME"}
    assert set(environment) == set(listed()) - of_the_image - {"GATEWAY_SECRET_KEY_FILE"}  # the key itself is required
    assert all(value is None or value.startswith(("${", "postgresql://")) for value in environment.values())


def test_commands_beside_the_unit_know_what_the_unit_knows() -> None:
    """Without the unit's environment a command would look into another database, with another key."""
    unit = (DEPLOY / "gateway.service").read_text()
    command = re.search(r"^#   (systemd-run (?:.*\\\n)*.*)", unit, flags=re.M)
    assert command is not None
    for setting in ("User", "WorkingDirectory", "EnvironmentFile"):
        value = re.search(rf"^{setting}=-?(\S+)$", unit, flags=re.M)
        assert value is not None
        assert f"--property={setting}=-{value[1]}" in command[1] or f"--property={setting}={value[1]}" in command[1]
    assert "--property=Environment=GATEWAY_HOME=/var/lib/gateway" in command[1]
    assert "runuser" not in unit


def test_compose_publishes_on_loopback_alone() -> None:
    published = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_compose_names_only_what_exists() -> None:
    services, volumes = compose()["services"], compose()["volumes"]
    assert set(services) == {"gateway", "postgres", "prometheus", "grafana"}
    assert {name for name in services["gateway"]["environment"] if not name.startswith("HF_")} <= SETTINGS
    assert services["prometheus"]["network_mode"] == "service:gateway"
    targets = {text.rpartition(" AS ")[2] for name, text in instructions() if name == "FROM"}
    assert {"slim", "local"} <= targets
    for service in services.values():
        assert "build" in service or ":" in service["image"], "an image without a version changes by itself"
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in volumes
        assert set(service.get("depends_on", {})) <= set(services)


def test_the_example_env_of_compose_is_complete() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    required = set(re.findall(r"\$\{([A-Z_]+):\?", text))
    comment = "".join(line for line in text.splitlines() if line.startswith("#"))
    assert all(f"{name}=" in comment for name in required)


def test_grafana_finds_its_data_source_and_dashboard() -> None:
    services = compose()["services"]
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert (source["type"], source["url"]) == ("prometheus", "http://gateway:9090")
    folder = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/gateway.yml").read_text())["providers"][0]["options"]["path"]
    assert any(mount == f"./grafana/gateway.json:{folder}/gateway.json:ro" for mount in services["grafana"]["volumes"])


def test_the_dashboard_is_in_order() -> None:
    board = json.loads((DEPLOY / "grafana/gateway.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    drawn = [panel for panel in panels if panel["type"] != "row"]
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in drawn)
    assert all(target["datasource"]["uid"] == "${datasource}" for panel in drawn for target in panel["targets"])
    boxes = [panel["gridPos"] for panel in panels]
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    for a, b in itertools.combinations(boxes, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        apart = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or apart, (a, b)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The systemd unit with a program that exists."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt-get install systemd)")
    path = tmp_path / "gateway.service"
    path.write_text((DEPLOY / "gateway.service").read_text().replace("/opt/gateway/bin/gateway", "/bin/true"))
    return path


def test_the_unit_is_valid_and_hardened(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = subprocess.run(["systemd-analyze", "security", "--offline=yes", "--threshold=25", str(unit)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-300:]


def test_the_unit_leaves_stopping_to_the_supervisor() -> None:
    lines = (DEPLOY / "gateway.service").read_text().splitlines()
    assert "KillMode=mixed" in lines  # SIGTERM for every process at once would end local models under running streams
    stop_s = int(next(line for line in lines if line.startswith("TimeoutStopSec=")).partition("=")[2])
    grace_s = int(compose()["services"]["gateway"]["stop_grace_period"].removesuffix("s"))
    assert min(stop_s, grace_s) >= Settings.model_fields["drain_s"].default + 20
