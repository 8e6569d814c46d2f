"""The Helm chart: rendered, its objects name each other rightly and ask for what Terrace has."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ps import tls
from tests.deploy import commands
from tests.deploy.linters import MANIFESTS, judge, tool
from tests.deploy.templates import rendered

CHART = MANIFESTS / "chart"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
RELEASE = {"Name": "ads", "Namespace": "models"}


def text_of(name: str, values: Any = VALUES) -> str:
    template = (CHART / "templates" / name).read_text()
    return rendered(template, {"Values": values, "Release": RELEASE})


def objects(values: Any = VALUES) -> dict[str, Any]:
    """The chart's objects by their kind."""
    found = [yaml.safe_load(text_of(path.name, values)) for path in CHART.glob("templates/*.yaml")]
    return {each["kind"]: each for each in found}


def changed(**servers_or_workers: dict[str, Any]) -> Any:
    values = copy.deepcopy(VALUES)
    for part, options in servers_or_workers.items():
        assert options.keys() <= values[part].keys()
        values[part] |= options
    return values


OTHERS = changed(
    servers={"count": 3, "storageClass": "local", "drainSeconds": 100},
    workers={"nodes": 4, "perNode": 2, "dataClaim": "clicks", "arguments": ["--data=/data"]},
)
BOTH = pytest.mark.parametrize("values", [VALUES, OTHERS], ids=["default", "others"])


def server_pod(made: dict[str, Any]) -> Any:
    return made["StatefulSet"]["spec"]["template"]


def worker_job(made: dict[str, Any]) -> Any:
    (job,) = made["JobSet"]["spec"]["replicatedJobs"]
    return job["template"]


def worker_pod(made: dict[str, Any]) -> Any:
    return worker_job(made)["spec"]["template"]


def only(pod: Any) -> Any:
    (container,) = pod["spec"]["containers"]
    return container


def served(made: dict[str, Any]) -> dict[str, Any]:
    command, values = commands.terrace(only(server_pod(made))["args"])
    assert command == "serve"
    return values


def trained(made: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    program, *words = only(worker_pod(made))["command"]
    assert program == "torchrun"
    meeting, words = commands.torchrun(words)
    command, values = commands.terrace(words)
    assert command == "train"
    return meeting, values


@BOTH
def test_workers_look_for_servers_in_the_order_of_their_ordinals(values: Any) -> None:
    made, count = objects(values), values["servers"]["count"]
    name, service = "ads-servers", made["Service"]["metadata"]["name"]
    assert made["StatefulSet"]["metadata"]["name"] == name
    assert made["StatefulSet"]["spec"]["replicas"] == count
    assert made["StatefulSet"]["spec"]["serviceName"] == service
    assert made["Service"]["spec"]["clusterIP"] == "None"
    port = served(made)["listen"].rpartition(":")[2]
    hosts = [f"{name}-{ordinal}.{service}" for ordinal in range(count)]
    assert trained(made)[1]["servers"] == ",".join(f"{host}:{port}" for host in hosts)
    notes = commands.in_shell(text_of("NOTES.txt", values))
    ((_, certificate),) = map(commands.terrace, notes)
    assert certificate["hosts"].split(",") == hosts


@BOTH
def test_a_server_is_the_shard_of_its_ordinal(values: Any) -> None:
    made = objects(values)
    (ordinal,) = only(server_pod(made))["env"]
    path = ordinal["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.labels['apps.kubernetes.io/pod-index']"
    assert served(made)["shard"] == f"$({ordinal['name']})/{values['servers']['count']}"


@BOTH
def test_workers_meet_at_the_first_pod_and_go_on_where_they_were(values: Any) -> None:
    made = objects(values)
    name, spec = made["JobSet"]["metadata"]["name"], made["JobSet"]["spec"]
    (job,) = spec["replicatedJobs"]
    meeting, options = trained(made)
    assert meeting.rdzv_endpoint == f"{name}-{job['name']}-0-0.{name}:29500"
    assert spec["network"]["enableDNSHostnames"]
    (attempt,) = only(worker_pod(made))["env"]
    path = attempt["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['jobset.sigs.k8s.io/restart-attempt']"
    assert meeting.rdzv_id == f"{name}-$({attempt['name']})"
    assert meeting.nnodes == str(values["workers"]["nodes"])
    assert meeting.nproc_per_node == str(values["workers"]["perNode"])
    inner = job["template"]["spec"]
    assert inner["parallelism"] == inner["completions"] == values["workers"]["nodes"]
    assert (inner["completionMode"], inner["backoffLimit"]) == ("Indexed", 0)
    assert options["resume"]
    assert spec["failurePolicy"]["maxRestarts"] > 0


@BOTH
def test_memory_is_the_budget_and_the_headroom(values: Any) -> None:
    made, asked = objects(values), values["servers"]
    memory = f"{asked['ramGiB'] + asked['headroomGiB']}Gi"
    resources = only(server_pod(made))["resources"]
    assert resources["limits"]["memory"] == resources["requests"]["memory"] == memory
    options = served(made)
    assert (options["ram"], options["threads"]) == (f"{asked['ramGiB']}GiB", asked["cpus"])
    (claim,) = made["StatefulSet"]["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == f"{asked['diskGiB']}Gi"
    assert int(options["disk"].removesuffix("GiB")) < asked["diskGiB"]
    asked = values["workers"]
    memory = f"{asked['ramGiB'] * asked['perNode'] + asked['headroomGiB']}Gi"
    assert only(worker_pod(made))["resources"]["limits"]["memory"] == memory
    grace = server_pod(made)["spec"]["terminationGracePeriodSeconds"]
    assert grace >= options["drain_seconds"] + 60


@BOTH
def test_every_port_and_volume_that_is_named_is_there(values: Any) -> None:
    made = objects(values)
    ports = {port["name"]: port["containerPort"] for port in only(server_pod(made))["ports"]}
    options = served(made)
    assert ports == {
        name: int(options[option].rpartition(":")[2])
        for name, option in (("grpc", "listen"), ("plain", "metrics"))
    }
    for port in made["Service"]["spec"]["ports"]:
        assert (port["targetPort"], port["port"]) == (port["name"], ports[port["name"]])
    for rule in made["NetworkPolicy"]["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= ports.keys()
    asked = {"startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz"}
    for kind, path in asked.items():
        probe = only(server_pod(made))[f"{kind}Probe"]
        assert probe["httpGet"] == {"path": path, "port": "plain"}
    annotations = server_pod(made)["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["plain"])
    for pod, claims in ((server_pod(made), {"rows"}), (worker_pod(made), set())):
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]} | claims
        mounted = [
            mount["name"] for container in containers(pod) for mount in container["volumeMounts"]
        ]
        assert set(mounted) == volumes
        assert {mount["name"]: mount["mountPath"] for mount in only(pod)["volumeMounts"]}[
            "scratch"
        ] == "/tmp"


def containers(pod: Any) -> list[Any]:
    return [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]


@BOTH
def test_selectors_choose_the_pods_that_they_mean(values: Any) -> None:
    made = objects(values)
    labels = server_pod(made)["metadata"]["labels"].items()
    others = worker_pod(made)["metadata"]["labels"].items()
    chosen = [
        made["Service"]["spec"]["selector"],
        *(
            made[kind]["spec"][key]["matchLabels"]
            for kind, key in (
                ("StatefulSet", "selector"), ("PodDisruptionBudget", "selector"),
                ("NetworkPolicy", "podSelector"),
            )
        ),
    ]  # fmt: skip
    for selector in chosen:
        assert selector.items() <= labels
        assert not selector.items() <= others
    workers, prometheus = made["NetworkPolicy"]["spec"]["ingress"]
    ((source,), (port,)) = workers["from"], workers["ports"]
    assert source.keys() == {"podSelector"}
    assert source["podSelector"]["matchLabels"].items() <= others
    assert not source["podSelector"]["matchLabels"].items() <= labels
    assert port["port"] == "grpc"
    assert [each["port"] for each in prometheus["ports"]] == ["plain"]


@BOTH
def test_no_container_is_roots_or_writes_where_it_should_not(values: Any) -> None:
    made = objects(values)
    for pod in (server_pod(made), worker_pod(made)):
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert not pod["spec"]["automountServiceAccountToken"]
        for container in containers(pod):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"]["drop"] == ["ALL"]
            assert container["image"] == values["image"]


@BOTH
def test_secrets_are_made_as_the_notes_say_and_hold_what_each_side_reads(values: Any) -> None:
    made = objects(values)
    needs = {
        "server": (server_pod(made), {tls.SERVER, tls.SERVER_KEY, tls.CA, tls.TOKEN}),
        "worker": (worker_pod(made), {tls.CLIENT, tls.CLIENT_KEY, tls.CA, tls.TOKEN}),
    }
    notes = [line.split() for line in text_of("NOTES.txt", values).splitlines()]
    for side, (pod, files) in needs.items():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        name = volumes["secret"]["secret"]["secretName"]
        assert name == values["secrets"][side]
        command = ["kubectl", "create", "secret", "generic", name]
        (line,) = (words for words in notes if words[:5] == command)
        given = {word.removeprefix("--from-file=") for word in line if "--from-file" in word}
        (copies,) = pod["spec"]["initContainers"]
        program, option, mode, *paths, target = copies["command"]
        assert (program, option, mode, target) == ("install", "-m", "600", "/tls")
        assert given == {Path(path).name for path in paths} == files
        assert {Path(path).parent for path in paths} == {Path("/secret")}


def test_the_name_of_the_image_is_that_of_compose() -> None:
    compose = yaml.safe_load((MANIFESTS / "compose.yaml").read_text())
    assert compose["services"]["ps-0"]["image"] == VALUES["image"]


@BOTH
def test_helm_renders_the_same(values: Any, tmp_path: Path) -> None:
    tool("helm")
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    judge("helm", "lint", "--strict", "chart")
    said = judge("helm", "template", RELEASE["Name"], "chart", "--namespace", RELEASE["Namespace"],
                 "--values", tmp_path / "values.yaml", "--kube-version", "1.31.0")  # fmt: skip
    assert {each["kind"]: each for each in yaml.safe_load_all(said) if each} == objects(values)


@BOTH
def test_kubernetes_schemas_have_what_it_asks_for(values: Any, tmp_path: Path) -> None:
    """JobSet is no part of Kubernetes; the job in it is."""
    tool("kubernetes-validate")
    made = objects(values)
    job = worker_job(made) | {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}}
    del made["JobSet"]
    files = []
    for each in (*made.values(), job):
        files.append(tmp_path / f"{each['kind']}.json")
        files[-1].write_text(json.dumps(each))
    judge("kubernetes-validate", "--strict", "--kubernetes-version", "1.31", *files)
