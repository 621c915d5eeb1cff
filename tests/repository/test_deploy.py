"""What deploy/ says of itself and of the pack is so, as far as files can tell; nothing is built or started here."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from i2v_tensorrt.cli.fleet_command import parser
from i2v_tensorrt.cli.serve_command import PORT

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
PACK = "/opt/comfy/ComfyUI/custom_nodes/I2V-TensorRT"
RAY = re.findall(r"^ray==([\d.]+)", (ROOT / "remote" / "fleet" / "requirements.txt").read_text("utf-8"), re.MULTILINE)


def content(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


def instructions(word: str) -> list[str]:
    """What follows an instruction of the Dockerfile, each time that it is there, on one line."""
    return re.findall(rf"^{word} (.*)$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)


def fleet_words(script: str) -> list[str]:
    """The arguments of `run.py fleet` in a script."""
    line = re.search(r"run\.py --inside fleet (.*)", script.replace("\\\n", ""))
    assert line is not None
    return shlex.split(line[1])


def test_the_image_is_pinned_and_its_user_is_nobody_special() -> None:
    tag = next(each.partition("=")[2] for each in instructions("ARG") if each.startswith("COMFYUI_TAG"))
    assert re.fullmatch(r"v\d+\.\d+\.\d+", tag)
    assert re.search(r":[\d.]+-devel-", instructions("ARG")[0])
    assert instructions("USER") == ["comfy"]
    assert DOCKERFILE.index("USER comfy") < DOCKERFILE.index("COPY")
    assert {"--chown=comfy"} == {each.split()[0] for each in instructions("COPY")}


def test_what_the_image_copies_is_there() -> None:
    sources = [each.split()[1] for each in instructions("COPY")]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    (entry,) = instructions("ENTRYPOINT")
    assert f"{PACK}/deploy/entrypoint.sh" in entry and instructions("WORKDIR")[-1] == PACK
    assert str(PORT) in instructions("EXPOSE")[0]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").split()
    assert not [source for source in sources if source in ignored] and ".venv" in ignored
    listed = re.findall(r"^-r (\S+)", (DEPLOY / "requirements.txt").read_text("utf-8"), re.MULTILINE)
    assert [(DEPLOY / path).resolve().is_file() for path in listed] == [True]


def test_models_engines_and_the_shared_folder_are_volumes_in_the_image_and_in_compose() -> None:
    volumes = set(yaml.safe_load(instructions("VOLUME")[0]))
    for service in content("compose.yaml")["services"].values():
        mounted = {each.split(":")[-1] for each in service["volumes"]}
        assert mounted < volumes and {"/shared", "/opt/comfy/ComfyUI/models/i2v_engines"} <= mounted
    assert set(content("compose.yaml")["volumes"]) == {"models", "engines"}


@pytest.mark.skipif(os.name != "posix", reason="the container is a Linux")
@pytest.mark.parametrize("words", [["nonsense"], ["worker"]], ids=["unknown", "no head"])
def test_the_entry_point_refuses_what_it_cannot_do(words: list[str]) -> None:
    command = ["sh", str(DEPLOY / "entrypoint.sh"), *words]
    known = {name: value for name, value in os.environ.items() if name != "RAY_HEAD"}
    done = subprocess.run(command, capture_output=True, text=True, env=known, check=False)
    assert done.returncode == 2 and ("Expected server" in done.stderr or "names the head" in done.stderr)


def test_compose_s_services_are_words_of_the_entry_point() -> None:
    known = set(re.findall(r"^(\w+)(?: \| (\w+))?\)$", (DEPLOY / "entrypoint.sh").read_text("utf-8"), re.MULTILINE))
    words = {word for each in known for word in each if word}
    assert words == {"server", "head", "worker", "fleet", "serve"}
    services = content("compose.yaml")["services"]
    assert {name: service["command"] for name, service in services.items()} == {name: [name] for name in services}
    assert services["server"]["ports"] == ["127.0.0.1:8188:8188"], "ComfyUI has no password"
    assert set(services) < words


def test_kuberay_s_job_has_one_ray_one_image_and_a_gpu_a_worker() -> None:
    job = content("kuberay.yaml")
    spec = job["spec"]["rayClusterSpec"]
    assert (job["apiVersion"], job["kind"], [spec["rayVersion"]]) == ("ray.io/v1", "RayJob", RAY)
    (group,) = spec["workerGroupSpecs"]
    pods = [spec["headGroupSpec"]["template"]["spec"], group["template"]["spec"]]
    containers = [pod["containers"][0] for pod in pods]
    assert len({container["image"] for container in containers}) == 1
    assert {container["workingDir"] for container in containers} == {PACK}
    assert all(pod["securityContext"]["runAsNonRoot"] for pod in pods)
    assert [container["resources"]["limits"].get("nvidia.com/gpu", 0) for container in containers] == [0, 1]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for container, pod in zip(containers, pods, strict=True):
        assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}


@pytest.mark.parametrize(
    ("name", "script"),
    [("kuberay.yaml", lambda found: found["spec"]["entrypoint"]), ("skypilot.yaml", lambda found: found["run"])],
    ids=["kuberay", "skypilot"],
)
def test_their_commands_are_ours(name: str, script: Any) -> None:
    options = parser().parse_args(fleet_words(script(content(name))))
    assert (ROOT / options.workflow).is_file() and options.out.is_relative_to("/shared")
    assert options.address is not None


def test_skypilot_s_machines_join_the_first_one() -> None:
    found = content("skypilot.yaml")
    assert found["num_nodes"] >= 2 and set(found) <= {"name", "num_nodes", "resources", "volumes", "run"}
    assert {"SKYPILOT_NODE_IPS", "SKYPILOT_NODE_RANK"} <= set(re.findall(r"\$(SKYPILOT_\w+)", found["run"]))
    assert found["run"].count("6399") == 2 and "--block" in found["run"]
    assert "/shared" in found["volumes"]
