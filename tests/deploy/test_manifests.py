"""The container, compose.yaml, Prometheus and Grafana: they name what there is, and nothing else.

Nothing is built or started here but one server, whose figures the dashboard names.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from ps import tls
from ps.wire import terrace_pb2 as wire
from tests.deploy import commands
from tests.deploy.linters import MANIFESTS, judge
from tests.deploy.serving import process_at
from tests.deploy.test_serve import enter, push
from tests.ps.serving import ROOT

COMPOSE = yaml.safe_load((MANIFESTS / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SERVERS, WORKERS = ["ps-0", "ps-1"], ["worker-0", "worker-1"]
# Container files are read in logical lines.
CONTAINER = (MANIFESTS / "Containerfile").read_text().replace("\\\n", " ").splitlines()
METRIC = re.compile(r"\bterrace_\w+")


def served(name: str) -> dict[str, Any]:
    command, values = commands.terrace(SERVICES[name]["command"])
    assert command == "serve"
    return values


def trained(name: str) -> dict[str, Any]:
    assert SERVICES[name]["entrypoint"] == ["torchrun"]
    command, values = commands.terrace(["train", *worker(name)[1][1:]])
    assert command == "train"
    return values


def worker(name: str) -> tuple[Any, list[str]]:
    return commands.torchrun(SERVICES[name]["command"])


def instructions(name: str) -> list[str]:
    return [line.split(None, 1)[1] for line in CONTAINER if line.startswith(name + " ")]


def test_servers_are_where_workers_look_for_them_in_the_order_of_shards() -> None:
    options = [served(name) for name in SERVERS]
    assert [each["shard"] for each in options] == ["0/2", "1/2"]
    ports = [each["listen"].rpartition(":")[2] for each in options]
    for name in WORKERS:
        assert trained(name)["servers"] == ",".join(map(":".join, zip(SERVERS, ports, strict=True)))


def test_workers_meet_at_one_of_them_and_go_on_where_they_were() -> None:
    for name in WORKERS:
        meeting, words = worker(name)
        assert (meeting.nnodes, meeting.rdzv_backend) == (str(len(WORKERS)), "c10d")
        host = meeting.rdzv_endpoint.partition(":")[0]
        assert SERVICES[host]["hostname"] == host
        assert "--resume" in words
        assert SERVICES[name]["depends_on"].keys() == set(SERVERS)


def test_certificates_are_of_the_servers_and_each_side_has_its_files() -> None:
    service = SERVICES["certificates"]
    ((_, values),) = map(commands.terrace, commands.in_shell(service["command"][0]))
    assert values["hosts"].split(",") == SERVERS
    installed = {
        words.split()[-1]: set(words.split()[3:-1])
        for words in service["command"][0].splitlines()
        if words.startswith("install -m 600 ")
    }
    assert installed == {
        "/tls-server": {tls.SERVER, tls.SERVER_KEY, tls.CA, tls.TOKEN},
        "/tls-worker": {tls.CLIENT, tls.CLIENT_KEY, tls.CA, tls.TOKEN},
    }
    for names, volume in ((SERVERS, "tls-server"), (WORKERS, "tls-worker")):
        for name in names:
            assert f"{volume}:/tls:ro" in SERVICES[name]["volumes"]


def test_every_volume_and_file_and_service_that_is_named_is_there() -> None:
    named = set()
    for service in SERVICES.values():
        for source in (volume.split(":")[0] for volume in service.get("volumes", [])):
            if source.startswith("."):
                assert (MANIFESTS / source).is_file()
            else:
                named.add(source)
        assert set(service.get("depends_on", [])) <= SERVICES.keys()
    assert named == COMPOSE["volumes"].keys()
    rows = [SERVICES[name]["volumes"][0] for name in SERVERS]
    assert len(set(rows)) == len(SERVERS)
    build = SERVICES["certificates"]["build"]
    assert (MANIFESTS / build["context"] / build["dockerfile"]) == MANIFESTS / "../.." / (
        "deploy/manifests/Containerfile"
    )
    # Folders that volumes are mounted on, so that they are the user's.
    (folders,) = (line for line in instructions("RUN") if "install -d" in line)
    targets = {
        volume.split(":")[1]
        for name in ("certificates", *SERVERS, *WORKERS)
        for volume in SERVICES[name]["volumes"]
    }
    assert targets <= set(folders.split())


def test_no_container_of_ours_runs_as_root_or_writes_where_it_should_not() -> None:
    for name in ("certificates", *SERVERS, *WORKERS):
        service = SERVICES[name]
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert "user" not in service  # the image's
        assert not any(port for port in service.get("ports", []))
    assert all(
        port.startswith("127.0.0.1:")
        for service in SERVICES.values()
        for port in service.get("ports", [])
    )


def test_servers_are_given_longer_to_stop_than_they_take_to_drain() -> None:
    for name in SERVERS:
        grace = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
        assert grace >= served(name)["drain_seconds"] + 30


def test_prometheus_scrapes_the_servers_and_grafana_asks_prometheus() -> None:
    (job,) = yaml.safe_load((MANIFESTS / "prometheus.yaml").read_text())["scrape_configs"]
    ports = [served(name)["metrics"].rpartition(":")[2] for name in SERVERS]
    (targets,) = job["static_configs"]
    assert targets["targets"] == [":".join(each) for each in zip(SERVERS, ports, strict=True)]
    (source,) = yaml.safe_load((MANIFESTS / "grafana/datasource.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((MANIFESTS / "grafana/provider.yaml").read_text())["providers"]
    folder = provider["options"]["path"]
    mounts = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]]
    assert sum(mount.startswith(folder + "/") for mount in mounts) == 1
    uids = {panel["datasource"]["uid"] for panel in dashboard()["panels"]}
    assert uids == {source["uid"]}


def test_the_image_is_pinned_not_roots_and_terrace_is_its_first_process() -> None:
    for line in instructions("FROM"):
        assert re.match(r"\S+:\d+\.\d+\.\d+\S*( AS \w+)?$", line)
    assert instructions("USER") == ["10001:10001"]
    assert CONTAINER.index("USER 10001:10001") > max(
        number for number, line in enumerate(CONTAINER) if line.startswith("RUN")
    )
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    # Given as a list: a shell in between would keep the signal to itself.
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["terrace"]


def test_the_image_is_built_of_what_there_is() -> None:
    for line in instructions("COPY"):
        if not line.startswith("--from"):
            *sources, _ = line.split()
            assert all((ROOT / source).exists() for source in sources)
    copied = {line.split()[0] for line in instructions("COPY")}
    assert copied >= {"storage", "ps", "worker", "deploy", "pyproject.toml", "constraints.txt"}


def dashboard() -> Any:
    return json.loads((MANIFESTS / "grafana/dashboard.json").read_text())


def test_a_server_shows_every_figure_of_the_dashboard_and_the_image_sees_its_health(
    tmp_path: Path,
) -> None:
    named = {
        name
        for panel in dashboard()["panels"]
        for target in panel["targets"]
        for name in METRIC.findall(target["expr"])
    }
    with process_at(tmp_path / "shard", "--metrics", "127.0.0.1:0", "--disk", "1GiB") as process:
        session = enter(process)
        push(process, session, 1)
        process.call("Prepare", wire.PrepareRequest(session=session, step=1, last=True))
        process.call("Commit", wire.CommitRequest(session=session, step=1))
        port = process.report["metrics_port"]
        text = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20).read().decode()
        assert health(port).returncode == 0
        process.end()
        assert health(port).returncode != 0
    # The text has the names of series that are still to come, too.
    shown = set(METRIC.findall(text))
    assert len(named) > 25
    assert named <= shown, sorted(named - shown)


def health(port: int) -> subprocess.CompletedProcess[bytes]:
    """The image's HEALTHCHECK, of a server on another port."""
    (check,) = instructions("HEALTHCHECK")
    python, option, code = json.loads(check.partition(" CMD ")[2])
    assert (python, option, code.count(":9000/")) == ("python", "-c", 1)
    words = [sys.executable, "-c", code.replace(":9000/", f":{port}/")]
    return subprocess.run(words, capture_output=True, timeout=60, check=False)


def test_the_readme_goes_from_laptop_to_cluster_by_commands_and_files_that_there_are() -> None:
    readme = (ROOT / "README.md").read_text()
    text = readme.partition("### From laptop to cluster")[2].partition("\n## ")[0]
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    (_, alone), (_, launched) = map(commands.terrace, commands.in_shell(shell))
    _, then = commands.terrace(launched["words"])
    assert (alone["data"], alone["batch_size"]) == (then["data"], then["batch_size"])
    (more,) = re.findall(r"^sbatch \S+ (.*)$", shell, re.MULTILINE)
    commands.terrace(["train", *more.split()])
    (value,) = re.findall(r"--set (\w+)=", shell)
    assert value in yaml.safe_load((MANIFESTS / "chart/values.yaml").read_text())
    named = re.findall(r"deploy/manifests/[\w./]+", shell)
    assert len(named) == 3
    assert all((ROOT / name).exists() for name in named)


def test_the_health_that_the_image_asks_for_is_where_servers_show_it() -> None:
    assert {served(name)["metrics"] for name in SERVERS} == {"0.0.0.0:9000"}


@pytest.mark.parametrize(
    "words",
    [
        ["hadolint", "Containerfile"],
        ["docker-compose", "-f", "compose.yaml", "config", "--quiet"],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"],
        ["shellcheck", "slurm.sbatch"],
    ],
    ids=lambda words: words[0],
)
def test_its_own_tool_finds_nothing(words: list[str]) -> None:
    judge(*words)
