"""The container's scripts, run outside of one: as they stand, without a network, on a read-only root."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import jsonschema
import pytest
import yaml
from ct_files import write_ct
from drawn_scans import random_hu
from grand_challenge_schema import MULTIPLE_POINTS

from luna16_monai import __version__
from luna16_monai.inference.challenge import PORT

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
ENTRYPOINT, INSTALL = DOCKER / "entrypoint.sh", DOCKER / "install.sh"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
# a backslash at its end joins a line to the next
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
STEPS = [line.split() for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **more}


def enter(*words: object, before: tuple[str, ...] = (), **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, "sh", str(ENTRYPOINT), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(**more),
    )


def arguments(instruction: str) -> list[list[str]]:
    return [step[1:] for step in STEPS if step[0] == instruction]


# --- the entrypoint -------------------------------------------------------------------------------------------------


def test_entrypoint_runs_luna16():
    done = enter("luna16", "--version")
    assert (done.returncode, done.stdout) == (0, f"luna16_monai {__version__}\n")


def test_entrypoint_runs_any_command_and_gives_its_exit_code():
    done = enter("python", "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "two words", "*")
    assert (done.returncode, done.stdout) == (7, "['two words', '*']\n")


def test_entrypoint_without_a_command_shows_the_help():
    done = enter()
    assert done.returncode == 0
    assert done.stdout.startswith("usage: luna16")


def test_entrypoint_training_hands_its_overrides_to_the_bundle(tmp_path):
    words = ("--learning_rat", 1, "--dataset_dir", tmp_path, "--output_dir", tmp_path / "run")
    done = subprocess.run(
        ["sh", str(ENTRYPOINT), "training", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment(),
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("luna16: learning_rat is no setting of this bundle")
    assert "was learning_rate meant?" in done.stderr.splitlines()[-1]


def case(folder: Path) -> Path:
    """A challenge's case: a CT of 1 mm that begins at (0, 0, 0) mm, and two nodules."""
    write_ct(folder / "images" / "chest-ct" / "a.mha", random_hu(0, (10, 12, 14)))
    points = [{"name": "one", "point": [11, 22, 33]}, {"name": "two", "point": [12, 23, 40]}]
    document = {"name": "nodules", "type": "Multiple points", "points": points, "version": {"major": 1, "minor": 0}}
    (folder / "nodule-locations.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_entrypoint_challenge_answers_a_case_and_writes_nothing_else(tmp_path):
    inputs, output = case(tmp_path / "input"), tmp_path / "output"
    output.mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = enter("challenge", "--input", inputs, "--output", output, "--device", "cpu", HOME=str(tmp_path / "no home"))
    assert done.returncode == 0, done.stderr
    answer = output / "lung-nodule-malginancy-likelihoods.json"
    assert sorted(tmp_path.rglob("*")) == sorted([*before, answer])
    document = json.loads(answer.read_text(encoding="utf-8"))
    jsonschema.validate(document, MULTIPLE_POINTS)
    assert [(one["name"], one["point"]) for one in document["points"]] == [("one", [11, 22, 33]), ("two", [12, 23, 40])]
    assert all(0 <= one["probability"] <= 1 for one in document["points"])
    # the next case fails, and must not leave this one's answer
    (inputs / "nodule-locations.json").write_text("{", encoding="utf-8")
    done = enter("challenge", "--input", inputs, "--output", output, "--device", "cpu")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("luna16: ")
    assert "nodule-locations.json, line 1" in done.stderr
    assert not list(output.iterdir())


def asked(port: int, path: str, method: str) -> tuple[int, str]:
    """Status and body of a request."""
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_entrypoint_challenge_serves_case_after_case(tmp_path):
    inputs, output = case(tmp_path / "input"), tmp_path / "output"
    output.mkdir()
    words = ["challenge", "--serve", "--input", str(inputs), "--output", str(output), "--device", "cpu", "--json"]
    server = subprocess.Popen(
        ["sh", str(ENTRYPOINT), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(GRAND_CHALLENGE_COMPONENT_USER_WEBSERVER_PORT="0"),
    )
    try:
        assert server.stdout is not None
        told = "".join(iter(server.stdout.readline, "}\n")) + "}"
        port = json.loads(told)["port"]
        assert asked(port, "/health", "GET")[0] == 200
        assert asked(port, "/elsewhere", "GET")[0] == asked(port, "/elsewhere", "POST")[0] == 404
        assert asked(port, "/invoke", "POST") == (201, "2 nodules in lung-nodule-malginancy-likelihoods.json\n")
        answer = output / "lung-nodule-malginancy-likelihoods.json"
        first = answer.read_bytes()
        answer.unlink()
        assert asked(port, "/invoke", "POST")[0] == 201
        assert answer.read_bytes() == first
        (inputs / "nodule-locations.json").unlink()
        status, text = asked(port, "/invoke", "POST")
        cure = "give a chest CT in HU, or name its nodules in nodule-locations.json\n"
        assert (status, text) == (400, f"no lungs are found in series a: {cure}")
        assert not answer.exists()
        assert asked(port, "/health", "GET")[0] == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 143
    finally:
        server.kill()
        server.communicate()


SHOW = "import os; print(os.environ['HOME'], os.environ['MPLCONFIGDIR'])"


def test_entrypoint_leaves_a_home_alone_that_can_be_written_to(tmp_path):
    done = enter("python", "-c", SHOW, HOME=str(tmp_path), MPLCONFIGDIR="/elsewhere")
    assert done.stdout.split() == [str(tmp_path), "/elsewhere"]


@pytest.mark.parametrize("home", ["absent", ""])
def test_entrypoint_makes_a_home_in_the_temporary_folder(tmp_path, home):
    home = str(tmp_path / home) if home else ""
    done = enter("python", "-c", SHOW, HOME=home, TMPDIR=str(tmp_path), XDG_CACHE_HOME="", MPLCONFIGDIR="")
    found, cache = map(Path, done.stdout.split())
    assert found.parent == tmp_path
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert cache == found / ".cache" / "matplotlib"


# --- without a network, on a read-only root -------------------------------------------------------------------------


def isolated(*flags: str) -> tuple[str, ...]:
    """The words before a command that take it out of this machine's namespaces."""
    before = ("unshare", *flags)
    if (
        shutil.which("unshare") is None
        or subprocess.run([*before, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip(f"{' '.join(before)} is not permitted here")
    return before


def test_entrypoint_needs_no_network():
    before = isolated("-rn")
    # what is to be shown is worth nothing if there is a network after all
    assert "lo" in Path("/proc/net/dev").read_text(encoding="utf-8")
    left = subprocess.run([*before, "cat", "/proc/net/dev"], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^\s*(\w+):", left, re.MULTILINE) == ["lo"]
    done = enter("luna16", "--version", before=before)
    assert (done.returncode, done.stdout) == (0, f"luna16_monai {__version__}\n")


READ_ONLY = """
set -e
mount --make-rprivate /
mount -t tmpfs -o size=128m tmpfs /dev/shm
mount -o remount,bind,ro /
mount -t tmpfs tmpfs "$TMPDIR"
cd "$TMPDIR"
exec sh "$@"
"""
DRAW = """
import multiprocessing, os, pathlib
try:
    pathlib.Path("/there").touch()
except OSError as error:
    print(error.strerror)
# what was exec'd is process 1 of its own, and sees nobody else's
print(os.getpid(), [name for name in os.listdir("/proc") if name.isdigit()])
import matplotlib.pyplot
print(matplotlib.get_cachedir() == os.environ["MPLCONFIGDIR"], os.statvfs("/dev/shm").f_blocks * 4096 >> 20)
"""


def test_entrypoint_needs_no_writable_root(tmp_path):
    before = (*isolated("-rmnpf", "--mount-proc"), "sh", "-c", READ_ONLY, "read-only")
    done = subprocess.run(
        [*before, str(ENTRYPOINT), "python", "-c", DRAW],
        capture_output=True,
        text=True,
        check=False,
        env=environment(HOME=str(tmp_path / "absent"), TMPDIR=str(tmp_path)),
    )
    if "mount" in done.stderr:
        pytest.skip(f"mounts are not permitted here: {done.stderr.strip()}")
    assert (done.returncode, done.stdout) == (0, "Read-only file system\n1 ['1']\nTrue 128\n"), done.stderr


CHALLENGE = """
set -e
mount --make-rprivate /
mount -t tmpfs -o size=128m tmpfs /dev/shm
mount -o remount,bind,ro /
mount -t tmpfs tmpfs "$TMPDIR"
mount -t tmpfs tmpfs "$OUTPUT"
sh "$@" --output "$OUTPUT"
cat "$OUTPUT"/*
"""


def test_entrypoint_challenge_needs_neither_network_nor_a_writable_root(tmp_path):
    """As grand-challenge runs it: the temporary and the output folder alone can be written to."""
    before = (*isolated("-rmnpf", "--mount-proc"), "sh", "-c", CHALLENGE, "challenge")
    inputs, output, temporary = case(tmp_path / "input"), tmp_path / "output", tmp_path / "tmp"
    output.mkdir()
    temporary.mkdir()
    done = subprocess.run(
        [*before, str(ENTRYPOINT), "challenge", "--input", str(inputs), "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(HOME=str(tmp_path / "absent"), TMPDIR=str(temporary), OUTPUT=str(output)),
    )
    if "mount" in done.stderr:
        pytest.skip(f"mounts are not permitted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    told, _, answer = done.stdout.partition("\n")
    assert told.startswith("challenge: 2 nodules in ")
    jsonschema.validate(json.loads(answer), MULTIPLE_POINTS)


# --- installing -----------------------------------------------------------------------------------------------------

RECORDING = """#!/bin/sh
echo "$0 $*" >> "$RECORD"
case "$*" in
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/luna16" ;;
esac
"""


@pytest.fixture
def install(tmp_path):
    """Run install.sh with a Python that writes down what it is asked; gives those lines."""
    fake = tmp_path / "python"
    fake.write_text(RECORDING)
    fake.chmod(0o755)

    def run(**more: str) -> list[str]:
        record = tmp_path / "record"
        record.unlink(missing_ok=True)
        variables = {"PYTHON": str(fake), "RECORD": str(record), "VENV": str(tmp_path / "venv"), **more}
        done = subprocess.run(
            ["sh", str(INSTALL)], capture_output=True, text=True, check=False, env=environment(**variables)
        )
        assert done.returncode == 0, done.stderr
        return record.read_text().replace(str(tmp_path), "").replace(str(ROOT), "SOURCE").splitlines()

    return run


def test_install_takes_the_tested_versions_and_the_extras(install):
    assert install() == [
        "/python -m venv /venv",
        "/venv/bin/python -m pip install --disable-pip-version-check --constraint SOURCE/constraints.txt "
        "SOURCE[baselines,dicom,export,report]",
        "/venv/bin/python -m pip check",
        "/venv/bin/luna16 --version",
    ]
    assert install(EXTRAS="")[1].endswith("constraints.txt SOURCE")
    assert install(EXTRAS="report")[1].endswith("SOURCE[report]")


def test_install_makes_the_folders(install, tmp_path):
    install(FOLDERS=f"{tmp_path}/a/data {tmp_path}/runs", OWNER=f"{os.getuid()}:{os.getgid()}")
    assert (tmp_path / "a" / "data").is_dir()
    assert (tmp_path / "runs").stat().st_uid == os.getuid()


def test_install_asks_where():
    variables = {name: value for name, value in environment().items() if name != "VENV"}
    done = subprocess.run(["sh", str(INSTALL)], capture_output=True, text=True, check=False, env=variables)
    assert done.returncode != 0
    assert "VENV is not set: name the folder of the environment" in done.stderr


@pytest.mark.parametrize("script", sorted(DOCKER.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_plain_sh(script, lint):
    assert script.read_text(encoding="utf-8").startswith("#!/bin/sh\n")
    assert os.access(script, os.X_OK)
    done = subprocess.run(["sh", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    done = lint("shellcheck", script)
    assert (done.returncode, done.stdout) == (0, "")


# --- Dockerfile and compose.yaml ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Dockerfile", "challenge.Dockerfile"])
def test_dockerfile_is_clean(lint, name):
    done = lint("hadolint", DOCKER / name)
    assert (done.returncode, done.stdout) == (0, "")


def test_challenge_image_asks_to_be_served():
    text = (DOCKER / "challenge.Dockerfile").read_text(encoding="utf-8")
    steps = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert 'LABEL org.grand-challenge.api-method="${METHOD}"' in steps
    assert "ARG METHOD=invoke" in steps
    assert 'CMD ["challenge", "--serve"]' in steps
    assert f"EXPOSE {PORT}" in steps
    # the user, the entrypoint and all else are those of the image that it stands on
    assert [step.split()[0] for step in steps] == ["ARG", "FROM", "ARG", "LABEL", "EXPOSE", "CMD"]


def test_dockerfile_copies_what_is_there_and_nothing_that_is_left_out():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    sources = [source for words in arguments("COPY") for source in words[:-1]]
    assert len(sources) == 8
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] not in ignored


def test_dockerfile_runs_the_scripts_that_it_copies():
    copied = {f"{words[-1].rstrip('/')}/{Path(source).name}" for words in arguments("COPY") for source in words[:-1]}
    (command,) = arguments("RUN")
    assert command[-2:] == ["sh", "/opt/luna16_monai/docker/install.sh"]
    assert command[-1] in copied
    (entrypoint,) = arguments("ENTRYPOINT")
    assert entrypoint == ['["sh",', '"/opt/luna16_monai/docker/entrypoint.sh"]']
    assert "/opt/luna16_monai/docker/entrypoint.sh" in copied


def test_dockerfile_gives_up_root_after_the_last_step_that_needs_it():
    names = [step[0] for step in STEPS]
    assert arguments("USER") == [["1000"]]
    assert "useradd --create-home --uid 1000 " in DOCKERFILE
    assert names.index("USER") > max(number for number, name in enumerate(names) if name in ("RUN", "COPY"))
    (variables,) = arguments("ENV")
    assert {"LUNA16_DATA=/data", "LUNA16_STORE=/runs/store", "LUNA16_RUNS=/runs", "VENV=/opt/venv"} <= set(variables)
    assert 'FOLDERS="/data /runs"' in DOCKERFILE


def test_compose_builds_the_dockerfile_and_mounts_what_it_names():
    services = COMPOSE["services"]
    assert set(services) == {"train", "tensorboard", "mlflow"}
    build = services["train"]["build"]
    context = (DOCKER / build["context"]).resolve()
    assert context == ROOT.resolve()
    assert (context / build["dockerfile"]).samefile(DOCKER / "Dockerfile")
    mounts = {name: {mount["target"]: mount for mount in service["volumes"]} for name, service in services.items()}
    assert set(mounts["train"]) == {"/data", "/runs"}
    assert mounts["train"]["/data"]["read_only"] is True
    assert "read_only" not in mounts["train"]["/runs"]
    assert mounts["tensorboard"]["/runs"]["read_only"] is True
    assert mounts["mlflow"]["/runs"] == mounts["train"]["/runs"]
    assert mounts["tensorboard"]["/runs"]["source"] == mounts["train"]["/runs"]["source"]


def test_compose_asks_for_the_gpus_and_for_enough_shared_memory():
    train = COMPOSE["services"]["train"]
    (device,) = train["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert train["shm_size"] == "1gb"
    assert (train["network_mode"], train["read_only"], train["init"]) == ("none", True, True)
    assert train["command"] == ["training"]


def test_compose_shows_the_curves_to_this_machine_alone():
    assert COMPOSE["services"]["tensorboard"]["ports"] == ["127.0.0.1:6006:6006"]
    assert COMPOSE["services"]["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
    assert shutil.which("tensorboard", path=environment()["PATH"])
