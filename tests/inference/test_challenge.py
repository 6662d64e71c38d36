"""A challenge's case: what is read, what is answered, and how the server says so."""

from __future__ import annotations

import json
import threading
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ct_files import write_ct

from luna16_monai.inference.challenge import PORT, PORT_VARIABLE, Challenge, ChallengeServer, port_of, read_case
from luna16_monai.interchange.luna25 import ANSWER, LOCATIONS

POINTS = [(12.0, 22.0, 34.0), (11.0, 21.0, 32.0)]


class HalfAndQuarter:
    """A classifier that gives the first point 0.5 and the second 0.25, and notes which CTs it gets."""

    def __init__(self) -> None:
        self.paths: list[Path] = []

    def volumes(self, paths: list[Path]) -> SimpleNamespace:
        self.paths += paths
        return SimpleNamespace()

    def probabilities(self, table: object, volumes: object) -> np.ndarray:
        return np.array([0.5, 0.25])


@pytest.fixture
def case(tmp_path) -> Path:
    folder = tmp_path / "input"
    write_ct(folder / "images" / "ct" / "a.mha")
    points = [{"name": name, "point": list(point)} for name, point in zip(("one", "two"), POINTS, strict=True)]
    document = {"name": "x", "type": "Multiple points", "points": points, "version": {"major": 1, "minor": 0}}
    (folder / LOCATIONS).write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_read_case_gives_the_ct_and_its_points(case):
    image, points = read_case(case)
    assert image == case / "images" / "ct" / "a.mha"
    assert (points.series, points.names) == (("a", "a"), ("one", "two"))
    assert points.points_xyz.tolist() == [list(point) for point in POINTS]


def test_read_case_refuses_two_cts_none_a_missing_list_and_a_point_outside(case):
    write_ct(case / "images" / "other" / "b.mha")
    with pytest.raises(ValueError, match=r"one CT a case is meant, found images/ct/a.mha, images/other/b.mha: put one"):
        read_case(case)
    (case / "images" / "other" / "b.mha").unlink()
    text = (case / LOCATIONS).read_text(encoding="utf-8")
    (case / LOCATIONS).write_text(text.replace("34.0", "340.0"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"\(12.0, 22.0, 340.0\) mm .* lies outside series a"):
        read_case(case)
    (case / LOCATIONS).unlink()
    with pytest.raises(FileNotFoundError, match=r"nodule-locations\.json is missing, and no detector is at hand"):
        read_case(case)
    (case / "images" / "ct" / "a.mha").unlink()
    with pytest.raises(FileNotFoundError, match="one CT a case is meant, found none"):
        read_case(case)


def test_answer_holds_the_points_as_they_were_asked_and_their_probabilities(case, tmp_path):
    network = HalfAndQuarter()
    told = Challenge(network, case, tmp_path / "output").answer()  # type: ignore[arg-type]
    assert (told["output"], told["points"]) == (str(tmp_path / "output" / ANSWER), 2)
    assert network.paths == [case / "images" / "ct" / "a.mha"]
    points = json.loads((tmp_path / "output" / ANSWER).read_text(encoding="utf-8"))["points"]
    assert [(one["name"], tuple(one["point"]), one["probability"]) for one in points] == [
        ("one", POINTS[0], 0.5),
        ("two", POINTS[1], 0.25),
    ]


def test_answer_of_another_case_is_gone_where_this_one_fails(case, tmp_path):
    challenge = Challenge(HalfAndQuarter(), case, tmp_path / "output")  # type: ignore[arg-type]
    challenge.answer()
    (case / LOCATIONS).write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{LOCATIONS}, line 1"):
        challenge.answer()
    assert list((tmp_path / "output").iterdir()) == []


def test_port_of_is_the_platforms_or_the_usual_one():
    assert (port_of({}), port_of({PORT_VARIABLE: ""}), port_of({PORT_VARIABLE: "0"})) == (PORT, PORT, 0)
    for text in ("65536", "-1", "4e3", "٣", "http"):
        with pytest.raises(ValueError, match=f"{PORT_VARIABLE} is '{text}': give a number"):
            port_of({PORT_VARIABLE: text})


def test_server_says_201_400_and_404_and_treats_the_next_case(case, tmp_path, capsys):
    challenge = Challenge(HalfAndQuarter(), case, tmp_path / "output")  # type: ignore[arg-type]
    with ChallengeServer(challenge, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def asked(method: str, path: str) -> tuple[int, str]:
            connection = HTTPConnection("127.0.0.1", server.server_port, timeout=30)
            connection.request(method, path)
            answer = connection.getresponse()
            try:
                return answer.status, answer.read().decode()
            finally:
                connection.close()

        try:
            assert asked("GET", "/health") == (200, "ready\n")
            assert asked("POST", "/invoke") == (201, f"2 nodules in {ANSWER}\n")
            assert asked("GET", "/invoke")[0] == asked("POST", "/health")[0] == 404
            listed = (case / LOCATIONS).read_bytes()
            (case / LOCATIONS).unlink()
            status, text = asked("POST", "/invoke")
            assert (status, f"{LOCATIONS} is missing" in text) == (400, True)
            (case / LOCATIONS).write_bytes(listed)
            assert asked("POST", "/invoke")[0] == 201
        finally:
            server.shutdown()
            thread.join()
        with pytest.raises(ValueError, match=f"port {server.server_port} cannot be used"):
            ChallengeServer(challenge, server.server_port)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["luna16"] * 3
    assert "is missing" in lines[1]
