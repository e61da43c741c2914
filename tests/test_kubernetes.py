"""Manifests: golden files, schemas of several versions, planted errors, and a rehearsal without a cluster."""

import copy
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import manifest_checks
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from tfpar import cli, errors, kubernetes, results

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = ("1.31", kubernetes_validate.latest_version())
IMAGE = "registry.example:5000/team/tfpar:0.1.0"
# The golden files are what these commands print: tfpar kubernetes ... > tests/golden/NAME.yaml
CASES = {
    "job": ["--workers", "2", "--gpus", "4", "--image", IMAGE, "--", "train", "data/fashion", "--stage", "20@0.1:0.01"],
    "jobset": [
        "--workers", "16", "--gpus", "8", "--image", IMAGE, "--target", "jobset", "--name", "photos", "--namespace", "team-a",
        "--queue", "gpus", "--data-claim", "photos-96", "--run-claim", "photos.runs", "--cpus", "32", "--memory", "256Gi",
        "--shm", "16Gi", "--port", "2222", "--deadline", "259200", "--", "train", "data/photos", "--global-batch-size", "4096",
    ],
    "cpu": ["--workers", "3", "--gpus", "0", "--image", "tfpar", "--", "train", "digits", "--shards", "6", "--run", "runs/图 $(HOME): 'a'"],
    "one": ["--workers", "1", "--gpus", "1", "--image", IMAGE, "--name", "alone", "--", "train", "data"],
}  # fmt: skip
SOME = {"workers": 2, "gpus": 1, "image": IMAGE}


def made(target="job", **changes):
    return kubernetes.manifests(["train", "data/fashion"], **(SOME | {"target": target} | changes))


def by_schema(manifest, version=VERSIONS[0]):
    """Return what the schemas say: Kubernetes' own, and the models of JobSet, which drop what they do not know."""
    try:
        if manifest.get("kind") != "JobSet":
            kubernetes_validate.validate(manifest, version, strict=True)
            return []
        for one in manifest["spec"]["replicatedJobs"]:
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}} | one["template"]
            kubernetes_validate.validate(job, version, strict=True)
        known = JobsetV1alpha2JobSet.from_dict(copy.deepcopy(manifest)).to_dict()
        return [] if known == manifest else ["the models of JobSet know other keys"]
    except (kubernetes_validate.ValidationError, ValueError) as error:
        return [str(error).splitlines()[0]]


# ---- what is printed


@pytest.mark.parametrize("name", CASES)
def test_golden(name, capsys):
    for _ in range(2):
        assert cli.main(["kubernetes", *CASES[name]]) == 0
        assert capsys.readouterr().out == (GOLDEN / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CASES)
def test_schemas_and_checks_agree(name, version):
    manifests = list(yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text(encoding="utf-8")))
    assert [by_schema(manifest, version) for manifest in manifests] == [[]] * len(manifests)
    assert manifest_checks.check(manifests) == []


def test_the_schemas_are_there_without_a_network(monkeypatch):
    def none(*_arguments, **_more):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", none)
    monkeypatch.setattr(socket.socket, "connect", none)
    assert by_schema(made()[1], VERSIONS[1]) == []
    assert by_schema(made()[1] | {"sepc": {}}, VERSIONS[1]) != []


def test_no_tensorflow_is_imported():
    program = f"import sys; from tfpar.cli import main; main({['kubernetes', *CASES['job']]!r}); sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("apiVersion"), done.stderr


def test_dockerfile(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["kubernetes", "--dockerfile"])
    said = capsys.readouterr().out
    lines = said.replace("\\\n", "").splitlines()
    assert ended.value.code == 0 and said == kubernetes.dockerfile()
    words = [line.split()[0] for line in lines if not line.startswith("#")]
    assert words == ["FROM", "COPY", "RUN", "RUN", "USER", "WORKDIR", "CMD"]
    pinned = re.findall(r'"([\w-]+)==([\w.]+)"', said)
    assert {"tensorflow", "keras", "numpy"} <= {name for name, _ in pinned} and ":latest" not in said
    pod = made()[1]["spec"]["template"]["spec"]
    assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" in lines
    assert f"WORKDIR {pod['containers'][0]['workingDir']}" in lines


WORDS = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["yes", "No", "on", "null", "~", "1", "0x1f", "1e3", "1:30", "2026-11-23", "-", "a: b", "a #b", ".inf", "=", "<<", "a:", "{i}", "\u2028", "\ufeff"]
)  # fmt: skip
VALUES = st.recursive(
    WORDS | st.integers() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
)


@given(st.lists(st.dictionaries(WORDS, VALUES, min_size=1, max_size=4), min_size=1, max_size=3))
@settings(deadline=None)
def test_yaml_is_read_back_by_another_reader(manifests):
    assert list(yaml.safe_load_all(kubernetes.text(manifests))) == manifests


def test_manifests_share_nothing():
    """Who edits one edits no other: not requests with limits, and not what the next call returns."""

    def parts(value):
        if isinstance(value, (dict, list)):
            yield id(value)
            for item in value.values() if isinstance(value, dict) else value:
                yield from parts(item)

    both = [*made(), *made(), *made("jobset")]
    found = list(parts(both))
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("value", [None, 1.5, (1,)])
def test_yaml_refuses_what_it_cannot_write(value):
    with pytest.raises(TypeError, match="a manifest holds"):
        kubernetes.text([{"a": [value]}])


# ---- what is refused

LONG = "a" * 64
WRONG = [
    {"workers": 0}, {"workers": 257}, {"workers": True}, {"workers": 2.0}, {"workers": "2"}, {"gpus": -1}, {"gpus": None},
    {"image": ""}, {"image": "Tfpar:1"}, {"image": "a b"}, {"image": "a\n"}, {"image": f"a@sha256:{LONG}z"}, {"target": "tfjob"},
    {"name": "Train"}, {"name": "1train"}, {"name": "train-"}, {"name": "a.b"}, {"name": ""}, {"name": "a" * 56},
    {"name": "a" * 46, "target": "jobset"}, {"name": "a" * 55, "workers": 11}, {"namespace": "a.b"}, {"namespace": ""},
    {"namespace": LONG}, {"queue": "Q"}, {"queue": LONG}, {"data_claim": "a..b"}, {"run_claim": "-a"}, {"run_claim": None},
    {"cpus": 0}, {"cpus": "4"}, {"memory": "16"}, {"memory": "16GB"}, {"memory": 16}, {"memory": "1e3"}, {"shm": "0Gi"},
    {"shm": "9Gi"}, {"port": 80}, {"port": 65536}, {"deadline": 0}, {"deadline": 2**31},
]  # fmt: skip


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_a_wrong_value_is_refused(changes):
    with pytest.raises(errors.SettingsError) as refused:
        made(**changes)
    name = next(iter(changes))
    assert re.search(rf"\b{name}\b", str(refused.value)) and re.search("give ", str(refused.value))


@pytest.mark.parametrize(
    "changes", [{"name": "a" * 55}, {"name": "a" * 45, "target": "jobset"}, {"name": "a" * 54, "workers": 11}], ids=str
)
def test_the_longest_names_are_taken(changes):
    assert manifest_checks.check(made(**changes)) == []


WRONG_WORDS = {
    "": "required", "evaluate runs/x": "give train", "train": "required: data", "train data/x --nonsense": "--nonsense",
    "train data/x --seed -1": "whole number from 0", "train data/x --stage x": "EPOCHS@RATE", "train -h": "give the words",
    "train data/x --fresh": "another --run", "train data/x --simulate 2": "give --workers", "train data/x --profile": "in a pod of its own",
    "train data/x --dry-run": "--dry-run: it trains nothing", "train data/x --run=": "run='': give a value",
    "train ../x": "give a path in the volume, such as data", "train photos/cats": "such as data", "train /data": "such as data",
    "train data/../x/y": "such as data", "train data/x --run x": "such as runs/NAME", "train data/x --run runs": "such as runs/NAME",
    "train data/x --run runs/../y": "such as runs/NAME", "train data/x --run data/y": "such as runs/NAME", "train data/x --weights w.h5": "data/FILE",
    "train data/x --model caffe:n": "data/FILE", "train data/x --model caffe:data/n --solver s": "data/FILE",
    "train data/x --shards 3": "multiple of 2", "train data/x --global-batch-size 63": "2 equal shards",
    "train data/x --shards 4 --global-batch-size 6": "4 equal shards", "train data/\udcff": "valid Unicode",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG_WORDS, ids=ascii)
def test_wrong_words_are_refused_with_the_remedy(words, capsys):
    with pytest.raises(errors.SettingsError, match=WRONG_WORDS[words]):
        kubernetes.manifests(words.split(), **SOME)
    code = cli.main(["kubernetes", "--workers", "2", "--gpus", "1", "--image", "i", "--", *(words.split() or ["x"])])
    said = capsys.readouterr()
    assert code == 78 and len(said.err.splitlines()) == 1 and "Traceback" not in said.err


@pytest.mark.parametrize(
    "words",
    ["train data", "train digits", "train ./data/x", "train data/x --run ./runs/a/b", "train /tfpar/data/x --run /tfpar/runs/y",
     "train data/x --weights imagenet", "train data/x --model caffe:data/n --solver data/s", "train data/x --weights data/w.h5", "train data/x --shards 4 --global-batch-size 64"],
)  # fmt: skip
def test_words_that_work_are_left_as_they_are(words):
    job = kubernetes.manifests(words.split(), **SOME)[1]
    assert job["spec"]["template"]["spec"]["containers"][0]["command"] == ["tfpar", *words.split()]


NAMES = st.from_regex(r"[a-z0-9.-]{1,64}", fullmatch=True) | st.text(max_size=5)


@given(
    st.fixed_dictionaries({
        "workers": st.integers(-1, 300), "gpus": st.integers(-1, 9), "image": NAMES, "target": st.sampled_from(["job", "jobset", "x"]),
    }, optional={
        "name": NAMES, "namespace": NAMES, "queue": NAMES, "data_claim": NAMES, "run_claim": NAMES, "cpus": st.integers(0, 2000),
        "memory": st.sampled_from(["64Mi", "2G", "8Gi", "8", "Gi"]), "shm": st.sampled_from(["64Mi", "1Gi", "3Gi", "1.5Gi"]),
        "port": st.integers(0, 70000), "deadline": st.integers(0, 10**10),
    })
)  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_any_values_are_refused_or_give_manifests_without_fault(values):
    try:
        manifests = kubernetes.manifests(["train", "data"], **values)
    except errors.SettingsError:
        return
    assert manifest_checks.check(manifests) == [] and not any(map(by_schema, manifests))


# ---- planted errors

GONE = "(left out)"
CONTAINER = "spec.template.spec.containers.0."
POD = "spec.template.spec."
SET = "spec.replicatedJobs.0.template."
PLANTED = {
    "Service": [
        ("metadata.name", "other"), ("metadata.namespace", "other"), ("spec.clusterIP", GONE), ("spec.clusterIP", "10.0.0.7"),
        ("spec.publishNotReadyAddresses", False), ("spec.selector", {"app": "train"}), ("spec.ports.0.port", 2222),
        ("spec.ports.0.port", "12345"), ("spec.type", "NodePort"), ("kind", "Servce"),
    ],
    "Job": [
        ("metadata.name", "Train"), ("metadata.name", "other"), ("metadata.name", GONE), ("spec.completions", 3), ("spec.parallelism", 1),
        ("spec.completionMode", "indexed"), ("spec.completionMode", GONE), ("spec.backoffLimit", 0), ("spec.activeDeadlineSeconds", GONE),
        ("spec.podReplacementPolicy", GONE), ("spec.podReplacementPolicy", "TerminatingOrFailed"), ("spec.podFailurePolicy", GONE),
        ("spec.podFailurePolicy.rules.0.action", "Fail"), ("spec.podFailurePolicy.rules.0.action", "Ignore"),
        ("spec.podFailurePolicy.rules.0.onExitCodes.values", [65, 2]), ("spec.podFailurePolicy.rules.0.onExitCodes.values", [0, 2]),
        ("spec.podFailurePolicy.rules.0.onExitCodes.values", [2, 65, 66, 73, 78]), ("spec.podFailurePolicy.rules.2", GONE),
        ("spec.podFailurePolicy.rules.0.onExitCodes.containerName", "main"), ("spec.podFailurePolicy.rules.0.onExitCodes.operator", "in"),
        ("spec.podFailurePolicy.rules.3.onPodConditions.0.status", GONE), ("spec.podFailurePolicy.rules.3", GONE),
        ("spec.podFailurePolicy.rules.1.action", "Count"), ("spec.templat", {}), ("spec.backoffLimit", "10"),
        (POD + "restartPolicy", "OnFailure"), (POD + "restartPolicy", GONE), (POD + "subdomain", "other"), (POD + "subdomain", GONE),
        (POD + "hostNetwork", True), (POD + "automountServiceAccountToken", GONE), (POD + "enableServiceLinks", True),
        (POD + "securityContext.runAsNonRoot", False), (POD + "securityContext.runAsUser", 0), (POD + "securityContext.seccompProfile.type", "runtimedefault"),
        (POD + "terminationGracePeriodSeconds", 5), (POD + "volumes.0", GONE), (POD + "volumes.0.persistentVolumeClaim.claimName", "Data"),
        (POD + "volumes.1.persistentVolumeClaim.readOnly", True), (POD + "volumes.2.emptyDir.medium", "memory"), (POD + "volumes.2.emptyDir.sizeLimit", "1GB"),
        (POD + "volumes.2.emptyDir.sizeLimit", "9Gi"), (POD + "volumes.3", {"name": "tmp", "hostPath": {"path": "/tmp"}}), (POD + "volumes.3.name", "shm"),
        (CONTAINER + "image", GONE), (CONTAINER + "image", "a b"), (CONTAINER + "command", GONE), (CONTAINER + "command.3", "--fresh"),
        (CONTAINER + "comand", ["tfpar"]), (CONTAINER + "volumeMounts.0.name", "dat"), (CONTAINER + "volumeMounts.0.readOnly", GONE),
        (CONTAINER + "volumeMounts.1.readOnly", True), (CONTAINER + "volumeMounts.1.mountPath", "/tfpar/data"), (CONTAINER + "volumeMounts.1.mountPath", "/runs"),
        (CONTAINER + "volumeMounts.2", GONE), (CONTAINER + "resources.limits", {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "2"}),
        (CONTAINER + "resources.requests", {"cpu": "4", "memory": "8Gi"}), (CONTAINER + "ports.0.containerPort", 2222), (CONTAINER + "ports.0.containerPort", 99999),
        (CONTAINER + "workingDir", GONE), (CONTAINER + "securityContext.allowPrivilegeEscalation", True), (CONTAINER + "securityContext.capabilities", GONE),
        (CONTAINER + "securityContext.capabilities.add", ["NET_ADMIN"]), (CONTAINER + "securityContext.readOnlyRootFilesystem", False),
        (CONTAINER + "securityContext.privileged", True), (CONTAINER + "env.3.value", "3"), (CONTAINER + "env.3.value", 2), (CONTAINER + "env.4.value", "train-0.train"),
        (CONTAINER + "env.4", GONE), (CONTAINER + "env.5.value", "2222"), (CONTAINER + "env.5.name", "TFPAR_PROT"), (POD + "containers.1", {"name": "b", "image": "b"}),
    ],
    "NetworkPolicy": [
        ("spec.podSelector", {}), ("spec.podSelector.matchLabels", {"app.kubernetes.io/name": "tfpar"}), ("spec.ingress", GONE),
        ("spec.ingress.0.from", GONE), ("spec.ingress.0.from", []), ("spec.ingress.0.from.0.podSelector", {}), ("spec.policyTypes", GONE),
        ("spec.ingress.0.from.0.namespaceSelector", {}), ("spec.ingress.0.from.1", {"ipBlock": {"cidr": "0.0.0.0/0"}}), ("spec.ingress.1", {}),
        ("metadata.namespace", "other"), ("apiVersion", "networking.k8s.io/v1beta1"), ("spec.ingres", []),
    ],
    "JobSet": [
        ("metadata.name", "a" * 46), ("apiVersion", "jobset.x-k8s.io/v1"), ("spec.failurePolicy", GONE), ("spec.failurePolicy.maxRestarts", 0),
        ("spec.failurePolicy.maxRestart", 3), ("spec.failurePolicy.restartStrategy", "Blocking"), ("spec.failurePolicy.restartStrategy", GONE),
        ("spec.failurePolicy.rules.0.name", GONE), ("spec.failurePolicy.rules.0.name", "sa-ved"), ("spec.failurePolicy.rules.1.name", "saved"),
        ("spec.failurePolicy.rules.0.action", "Restart"), ("spec.failurePolicy.rules.0.onJobFailureMessagePatterns", GONE),
        ("spec.failurePolicy.rules.0.onJobFailureMessagePatterns", ["exit code 24"]), ("spec.failurePolicy.rules.1.onJobFailureReasons", GONE),
        ("spec.failurePolicy.rules.0.onJobFailureReasons", ["PodFailure"]), ("spec.failurePolicy.rules.1", GONE), ("spec.network.subdomain", "other"),
        ("spec.network.enableDNSHostnames", False), ("spec.network.enableDNSHostname", True), ("spec.replicatedJobs.0.name", "worker"),
        ("spec.replicatedJobs.0.replicas", 2), (SET + "spec.backoffLimit", 6), (SET + "spec.template.spec.restartPolicy", GONE),
        (SET + "spec.podFailurePolicy.rules.2.action", "Ignore"), (SET + "spec.podFailurePolicy.rules.3.action", "Ignore"),
        (SET + "spec.template.spec.subdomain", "train"), (SET + "spec.template.spec.containers.0.env.4.value", "train-{i}.train"),
    ],
}  # fmt: skip
CASES_PLANTED = [(kind, path, value) for kind, planted in PLANTED.items() for path, value in planted]


def plant(manifest, path, value):
    *way, last = path.split(".") if "nvidia" not in path else path.split(".", 1)
    for key in way:
        manifest = manifest[int(key) if isinstance(manifest, list) else key]
    if value is GONE:
        del manifest[int(last) if isinstance(manifest, list) else last]
    elif isinstance(manifest, list):
        manifest[int(last) : int(last) + 1] = [value]
    else:
        assert manifest.get(last) != value
        manifest[last] = value


@pytest.mark.parametrize(
    ("kind", "path", "value"), CASES_PLANTED, ids=lambda value: "gone" if value is GONE else str(value)[-60:]
)
def test_a_planted_error_is_refused(kind, path, value):
    manifests = made("jobset" if kind == "JobSet" else "job")
    manifest = next(one for one in manifests if one["kind"] == kind)
    plant(manifest, path, value)
    found = [line for one in manifests for line in schema_of(one)] + manifest_checks.check(manifests)
    assert found and all(isinstance(line, str) and line for line in found)


SAID = [
    ("Job", POD + "initContainers", [{"name": "a"}], "initContainers is"),
    ("Job", CONTAINER + "securityContext.seccompProfile", {"type": "Unconfined"}, "securityContext.seccompProfile is"),
    ("JobSet", "spec.replicatedJobs.1", {"name": "b"}, "must be one, whose pods"),
    ("JobSet", "spec.failurePolicy.rules.0.action", "Restart", "'Restart' is no action of JobSet"),
    ("JobSet", "spec.failurePolicy.rules.0.onJobFailureReasons", ["Failed"], "what is no reason of a Job"),
    ("Job", "metadata.name", "Train", "begin with a letter"),
    ("JobSet", "metadata.name", "a" * 46, "longer than 63"),
    ("Job", "spec.podFailurePolicy.rules.0.action", "Fail", "'Fail' is no action"),
    ("Job", "spec.podFailurePolicy.rules.0.onPodConditions", [], "either onExitCodes or onPodConditions"),
    ("Job", "spec.podFailurePolicy.rules.0.onExitCodes.values", [65, 2], "values that rise"),
    ("Job", "spec.podFailurePolicy.rules.3.onPodConditions.0.status", "Yes", 'must have status "True"'),
    ("Job", CONTAINER + "ports.0.containerPort", 80, "from 1024 to 65535"),
    ("Job", CONTAINER + "env.0.name", "TFPAR_PORT", "TFPAR_PORT: given twice"),
    ("Job", CONTAINER + "resources.limits.cpu", "4 cores", "cpu '4 cores' is no amount"),
    ("Job", CONTAINER + "resources.limits.memory", GONE, "memory must be limited"),
    ("Job", POD + "volumes.3.name", "shm", "of its own"),
    ("Job", CONTAINER + "volumeMounts.3.name", "temp", "temp must be both"),
    ("Job", POD + "volumes.2.emptyDir.medium", "memory", "medium 'memory'"),
]  # fmt: skip


def test_on_cpus_the_workers_port_alone_is_open():
    for target in ("job", "jobset"):
        manifests = made(target, gpus=0, port=2222)
        (allowed,) = manifests[-1]["spec"]["ingress"]
        assert allowed["ports"] == [{"protocol": "TCP", "port": 2222}] and manifest_checks.check(manifests) == []
        allowed["ports"] = [{"protocol": "TCP", "port": 2223}]
        assert manifest_checks.check(manifests) and "ports" not in made(target)[-1]["spec"]["ingress"][0]


@pytest.mark.parametrize(("kind", "path", "value", "line"), SAID, ids=lambda value: str(value)[-40:])
def test_the_line_says_what_is_wrong(kind, path, value, line):
    manifests = made("jobset" if kind == "JobSet" else "job")
    plant(next(one for one in manifests if one["kind"] == kind), path, value)
    assert [said for said in manifest_checks.check(manifests) if line in said]


def schema_of(manifest):
    try:
        return by_schema(manifest)
    except kubernetes_validate.SchemaNotFoundError as error:
        return [error.message]


def places(value, path=()):
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_the_checks_never_break_on_what_they_are_given(data):
    manifests = made(data.draw(st.sampled_from(["job", "jobset"])))
    *way, last = data.draw(st.sampled_from([path for path in places(manifests) if path]))
    parent = manifests
    for key in way:
        parent = parent[key]
    parent[last] = data.draw(VALUES | st.none())
    assert all(isinstance(line, str) for line in manifest_checks.check(manifests))


# ---- the rehearsal


def free_ports(count):
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in with_ports]
    for one in with_ports:
        one.close()
    return ports


def started(text, place):
    """Start what a cluster would start: the command of the manifest's container, once for each index, with its variables."""
    job = next(manifest for manifest in yaml.safe_load_all(text) if manifest["kind"] == "Job")["spec"]
    container = job["template"]["spec"]["containers"][0]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/tfpar/data", "/tfpar/runs"}
    assert container["command"][0] == "tfpar" and container["workingDir"] == "/tfpar"
    variables = {one["name"]: one["value"] for one in container["env"]}
    ports = ",".join(map(str, free_ports(job["completions"])))  # all hosts are this one
    variables |= {
        "TFPAR_HOST_TEMPLATE": "127.0.0.1",
        "TFPAR_PORT": ports,
        "HOME": str(place),
        "TFPAR_WAIT_SECONDS": "60",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", *container["command"]], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | variables | {"JOB_COMPLETION_INDEX": str(index)}, start_new_session=True,
        )
        for index in range(job["completions"])
    ]  # fmt: skip


def ended(processes, seconds):
    """Wait for processes, kill those that are left after a time, and return exit codes and what they said."""
    deadline, said = time.monotonic() + seconds, []
    try:
        for process in processes:
            said.append(process.communicate(timeout=max(1, deadline - time.monotonic()))[0])
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.communicate()
    return [process.returncode for process in processes], said


@pytest.mark.by_hand
def test_the_rehearsal_trains_to_the_bits_of_one_process(digits, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits").symlink_to(digits.directory.resolve())
    for run, workers in (("two", "2"), ("one", "1")):
        words = ["train", "data/digits", "--run", f"runs/{run}", "--stage", "1@0.2", "--shards", "2"]
        assert (
            cli.main(["kubernetes", "--workers", workers, "--gpus", "0", "--image", "i", "--cpus", "1", "--", *words])
            == 0
        )
        codes, said = ended(started(capsys.readouterr().out, tmp_path), 240)
        assert codes == [0] * int(workers), said
        assert f"{workers} replica" in said[0] and "finished: accuracy" in said[0]
    assert results.compare(results.Run(tmp_path / "runs/one"), results.Run(tmp_path / "runs/two"))["same_bits"]
