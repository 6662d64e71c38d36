"""The review page: who may see it, what it refuses, and the page in a real browser."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import MISSING, PROGRAM
from drawn_scans import random_hu, write_scan
from PIL import Image

from luna16_monai.cli import main as cli
from luna16_monai.review.decisions import Decisions
from luna16_monai.review.server import FORBIDDEN, ReviewServer
from luna16_monai.review.session import Review
from luna16_monai.tables.luna16 import read_candidates
from luna16_monai.tables.points import read_points, write_points

ROOT = Path(__file__).parents[2]
UID = "1.2.3"
# (x, y, z) in a scan of 40 slices of 2 mm from z = -300, 60 rows of 0.75 mm from y = -50, 70 columns of 0.5 mm
# from x = -100, by rising probability
POINTS = [(-80.0, -30.0, -260.0), (-90.0, -20.0, -240.0), (-70.0, -10.0, -230.0), (-85.5, -25.25, -250.0)]
PROBABILITY = [0.1, 0.4, 0.7, 0.95]
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    path = tmp_path / "predictions.csv"
    calibrated = np.array(PROBABILITY) / 2
    write_points(path, [UID] * 4, POINTS, PROBABILITY, "probability", calibrated_probability=calibrated)
    return path


@pytest.fixture
def server(predictions: Path, ct: Path, tmp_path: Path) -> Iterator[ReviewServer]:
    with Serving(Review(predictions, [ct], Decisions(tmp_path / "decisions.csv", "Anna"))) as opened:
        yield opened


class Serving:
    """Serves a review in a thread while a block runs."""

    def __init__(self, review: Review) -> None:
        self.server = ReviewServer(review)

    def __enter__(self) -> ReviewServer:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        return self.server

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


def ask(
    server: ReviewServer, address: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send one request just as it is written; gives status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest("GET" if body is None else "POST", address, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    result = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return result


def decide(server: ReviewServer, content: object, token: str | None = None) -> tuple[int, bytes]:
    address = f"/{server.token if token is None else token}/decide"
    status, _, body = ask(server, address, json.dumps(content).encode(), Content_Type="application/json")
    return status, body


# --- who may see it -------------------------------------------------------------------------------------------------


def test_server_listens_on_this_machine_alone(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/{server.token}/"
    assert len(server.token) == 32


@pytest.mark.parametrize(
    "address",
    ["/", "/index.html", "/{wrong}/", "/{half}/", "/{token}", "/%C3%A9/", "/{wrong}/candidates", "*"],
)
def test_page_without_its_token_is_forbidden(server, address):
    words = {"token": server.token, "half": server.token[:16], "wrong": "x" * 32}
    status, _, body = ask(server, address.format(**words))
    assert (status, body.decode()) == (403, FORBIDDEN)
    assert decide(server, {"number": 0, "label": 1}, token="x")[0] == 403
    assert server.review.decided()["decided"] == 0


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example:1", "", "[::1]"])
def test_another_hosts_name_is_forbidden_even_with_the_token(server, host):
    assert ask(server, f"/{server.token}/", Host=host)[0] == 403


def test_a_tunnels_other_port_is_allowed(server):
    for host in ("localhost:9000", "127.0.0.1", "localhost"):
        assert ask(server, f"/{server.token}/", Host=host)[0] == 200


@pytest.mark.parametrize(
    "name",
    [
        "look.css", "review.html", "../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%2freport.html.j2",
        "slice/../../x", "decide", "/etc/passwd",
    ],
)  # fmt: skip
def test_no_path_is_taken_from_a_request(server, name):
    status, _, body = ask(server, f"/{server.token}/{name}")
    assert (status, body) == (404, b"404: there is no such page")


def test_page_allows_itself_and_nothing_else(server):
    status, headers, body = ask(server, f"/{server.token}/")
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    nonce = policy["script-src"].strip("'").removeprefix("nonce-")
    assert status == 200
    assert len(nonce) > 16
    assert body.decode().count(f'nonce="{nonce}"') == 2
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert (headers["Cache-Control"], headers["Referrer-Policy"]) == ("no-store", "no-referrer")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Python" not in headers["Server"]
    again = ask(server, f"/{server.token}/")[1]["Content-Security-Policy"]
    assert again != headers["Content-Security-Policy"]


# --- what it shows and saves ----------------------------------------------------------------------------------------


def test_candidates_come_by_falling_probability(server):
    told = json.loads(ask(server, f"/{server.token}/candidates")[2])
    seen = [(one["number"], one["probability"], one["calibrated"], one["point_xyz"]) for one in told["candidates"]]
    assert seen == [
        (number, p, p / 2, list(point))
        for number, (p, point) in enumerate(zip(PROBABILITY[::-1], POINTS[::-1], strict=True))
    ]
    assert (told["reviewer"], told["file"], told["decided"]) == ("Anna", "decisions.csv", 0)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("number=0&view=axial&step=0&side=0", "window is given 0 times"),
        ("number=9&view=axial&step=0&side=0&window=lung", "out of range"),
        ("number=-1&view=axial&step=0&side=0&window=lung", "none below 0"),
        ("number=0&view=../x&step=0&side=0&window=lung", "../x"),
        ("number=0&view=axial&step=500&side=0&window=lung", "leads out of the scan"),
        ("number=0&view=axial&step=0&side=-1&window=lung", "side -1"),
        ("number=0&view=axial&step=0&side=0&window=lung&window=lung", "window is given 2 times"),
        ("number=a&view=axial&step=0&side=0&window=lung", "invalid literal"),
    ],
)
def test_slice_refuses_what_is_not_on_its_lists(server, query, message):
    status, _, body = ask(server, f"/{server.token}/slice?{query}")
    assert status == 400
    assert message in body.decode()


def test_decide_saves_at_once_and_training_can_read_it(server, tmp_path):
    status, body = decide(server, {"number": 1, "label": 0})
    assert (status, json.loads(body)["decisions"]["1"]["label"]) == (200, 0)
    table = read_points(tmp_path / "decisions.csv", "class")
    assert (table.points_xyz.tolist(), table.values.tolist()) == ([list(POINTS[2])], [0.0])
    assert json.loads(decide(server, {"number": 1, "label": None})[1]) == {"decisions": {}, "decided": 0, "count": 4}
    assert server.saved == 2


@pytest.mark.parametrize(
    "content",
    [{"number": 0}, {"number": 0, "label": 2}, {"number": True, "label": 1}, {"number": 0, "label": 1.0},
     {"number": -1, "label": 1}, {"number": 99, "label": 1}, [], "x", {"number": 0, "label": "1" * 2000}],
)  # fmt: skip
def test_decide_refuses_what_it_does_not_understand(server, content, tmp_path):
    assert decide(server, content)[0] == 400
    assert not (tmp_path / "decisions.csv").exists()


def test_decide_refuses_what_a_foreign_form_could_send(server):
    body = json.dumps({"number": 0, "label": 1}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert ask(server, f"/{server.token}/decide", body, Content_Type=kind)[0] == 400


def add(server: ReviewServer, content: object, token: str | None = None) -> tuple[int, bytes]:
    address = f"/{server.token if token is None else token}/add"
    status, _, body = ask(server, address, json.dumps(content).encode(), Content_Type="application/json")
    return status, body


def test_add_saves_a_nodule_that_is_missing(server, tmp_path):
    status, body = add(server, {"series_uid": UID, "point_xyz": [-75.0, -20, -245.5], "diameter_mm": 6})
    assert (status, json.loads(body)["count"], json.loads(body)["decisions"]["4"]["label"]) == (200, 5, 1)
    told = json.loads(ask(server, f"/{server.token}/candidates")[2])
    assert (told["candidates"][4]["probability"], told["candidates"][4]["diameter_mm"]) == (None, 6)
    assert told["scans"][UID]["axial"]["slices"] == 40
    table = read_points(tmp_path / "decisions.csv", "diameter_mm")
    assert (table.points_xyz.tolist(), table.values.tolist()) == ([[-75, -20, -245.5]], [6])
    assert server.saved == 1


@pytest.mark.parametrize(
    "change",
    [{"series_uid": "9"}, {"series_uid": 3}, {"point_xyz": [0, 0]}, {"point_xyz": [0, 0, 0]}, {"point_xyz": "abc"},
     {"point_xyz": [-75, -20, None]}, {"point_xyz": [-75, -20, 10**400]}, {"point_xyz": [-75, -20, float("nan")]},
     {"diameter_mm": 0}, {"diameter_mm": True}, {"diameter_mm": None}, {"diameter_mm": float("inf")}],
)  # fmt: skip
def test_add_refuses_what_it_does_not_understand(server, change, tmp_path):
    content = {"series_uid": UID, "point_xyz": [-75.0, -20.0, -245.5], "diameter_mm": 6.0}
    assert add(server, {**content, **change})[0] == 400
    assert add(server, content, token="x")[0] == 403
    body = json.dumps(content).encode()
    assert ask(server, f"/{server.token}/add", body, Content_Type="text/plain")[0] == 400
    assert not (tmp_path / "decisions.csv").exists()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("series=1.2.3&view=axial&number=40&window=lung", "slice 40: choose one from 0 to 39"),
        ("series=1.2.3&view=axial&number=-1&window=lung", "slice -1"),
        ("series=9&view=axial&number=0&window=lung", "9"),
        ("series=1.2.3&view=../x&number=0&window=lung", "../x"),
        ("series=1.2.3&view=axial&number=0", "window is given 0 times"),
    ],
)
def test_whole_slice_refuses_what_is_not_on_its_lists(server, query, message):
    status, _, body = ask(server, f"/{server.token}/whole?{query}")
    assert status == 400
    assert message in body.decode()
    assert ask(server, f"/{server.token}/whole?series={UID}&view=axial&number=0&window=lung")[0] == 200


def test_a_second_reviewer_sees_the_first_ones_decisions(server, predictions, ct, tmp_path):
    with Serving(Review(predictions, [ct], Decisions(tmp_path / "decisions.csv", HOSTILE))) as second:
        decide(server, {"number": 0, "label": 1})
        decide(server, {"number": 1, "label": 1})
        status, body = decide(second, {"number": 1, "label": 0})
    assert status == 200
    seen = json.loads(body)["decisions"]
    assert {number: (one["label"], one["reviewer"]) for number, one in seen.items()} == {
        "0": (1, "Anna"),
        "1": (0, HOSTILE),
    }
    assert json.loads(ask(server, f"/{server.token}/decisions")[2])["decisions"] == seen


def test_a_decision_that_cannot_be_saved_is_told(server, tmp_path):
    (tmp_path / "decisions.csv").write_text("something else", encoding="utf-8")
    status, body = decide(server, {"number": 0, "label": 1})
    assert status == 400
    assert "column seriesuid is missing" in body.decode()
    assert (tmp_path / "decisions.csv").read_text(encoding="utf-8") == "something else"


def test_a_ct_that_goes_away_is_told(tmp_path):
    paths = [write_scan(tmp_path / "ct", uid, random_hu(0)) for uid in ("a", "b")]
    write_points(tmp_path / "p.csv", ["a", "b"], POINTS[:2], [0.9, 0.1], "probability")
    with Serving(Review(tmp_path / "p.csv", paths, Decisions(tmp_path / "d.csv", "Anna"))) as server:
        paths[1].with_suffix(".raw").unlink()
        status, _, body = ask(server, f"/{server.token}/slice?number=1&view=axial&step=0&side=0&window=lung")
        assert status == 500
        assert "b.raw, the data file of b.mhd, is missing" in body.decode()
        assert ask(server, f"/{server.token}/slice?number=0&view=axial&step=0&side=0&window=lung")[0] == 200
        assert decide(server, {"number": 1, "label": 0})[0] == 200


# --- the command ----------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], words: list[object], *parts: str) -> None:
    assert cli.main(["review", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def test_review_refuses_predictions_of_another_ct(predictions, tmp_path, capsys):
    other = write_scan(tmp_path / "other", "9.9", random_hu(0))
    refused(capsys, ["--predictions", predictions, "--ct", other], f"series {UID}", "predictions.csv, line 2")
    shifted = write_scan(tmp_path / "shifted", UID, random_hu(0), origin_xyz=(0, 0, 0))
    refused(capsys, ["--predictions", predictions, "--ct", shifted], "(-80.0, -30.0, -260.0) mm", "lies outside")
    assert not (tmp_path / "predictions_decisions.csv").exists()


def test_review_refuses_a_ct_or_predictions_that_are_gone(predictions, ct, tmp_path, capsys):
    refused(capsys, ["--predictions", predictions, "--ct", tmp_path / "no.mhd"], "no CT", "no.mhd")
    refused(capsys, ["--predictions", tmp_path / "no.csv", "--ct", ct], "no file", "no.csv")
    ct.with_suffix(".raw").unlink()
    refused(capsys, ["--predictions", predictions, "--ct", ct], f"{UID}.raw", "is missing")


def test_review_refuses_a_port_that_is_taken_or_none(predictions, ct, capsys):
    words = ["--predictions", predictions, "--ct", ct]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(capsys, [*words, "--port", port], f"port {port} cannot be used", "name another --port")
    refused(capsys, [*words, "--port", 70000], "port 70000", "from 1 to 65535")


def test_review_refuses_nothing_to_show_and_a_foreign_decisions_file(predictions, ct, capsys):
    words = ["--predictions", predictions, "--ct", ct]
    refused(capsys, [*words, "--least", 0.99], "holds 0 candidates of probability 0.99 and more")
    refused(capsys, [*words, "--decisions", predictions], "column class is missing")
    refused(capsys, [*words, "--reviewer", "An\nna"], "reviewer", "on one line")


@pytest.mark.parametrize(
    ("number", "code", "how"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 143, "ended by SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_review_ends_on_a_signal_and_tells_what_was_saved(predictions, ct, tmp_path, number, code, how):
    words = ["review", "--predictions", predictions, "--ct", ct, "--reviewer", "Anna", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "luna16_monai", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        lines = [process.stdout.readline()]
        while lines[-1] not in ("}\n", ""):
            lines.append(process.stdout.readline())
        told = json.loads("".join(lines))
        port, token = told["url"].removeprefix("http://127.0.0.1:").strip("/").split("/")
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
        connection.request(
            "POST", f"/{token}/decide", json.dumps({"number": 0, "label": 1}), {"Content-Type": "application/json"}
        )
        assert connection.getresponse().status == 200
        process.send_signal(number)
        rest, err = process.communicate(timeout=60)
    finally:
        process.kill()
    path = tmp_path / "predictions_decisions.csv"
    assert (process.returncode, rest) == (code, "")
    unknown, err = err.split("\n", 1)
    assert unknown.startswith("luna16: whether the weights have seen the CTs at hand is not known")
    ended, last = err.splitlines()
    assert ended == f"luna16: review has ended, 1 decisions saved; {path} holds 1 of 4"
    assert last == f"luna16: {how}; the same command goes on where it stopped"
    assert told["decisions"] == str(path)
    assert (told["candidates"], told["reviewer"]) == (4, "Anna")
    assert read_points(path, "class").points_xyz.tolist() == [list(POINTS[3])]


# --- the page in a browser ------------------------------------------------------------------------------------------

# every view shows what it should
SHOWN = (
    "document.querySelectorAll('.view[data-shown]').length === 3 && !document.querySelector('.view.stale')"
    " && [...document.querySelectorAll('.view img')].every(image => image.naturalWidth > 0)"
)
WHOLE = "document.querySelector('.whole[data-shown]:not([hidden])') && !document.querySelector('.whole.stale')"
WORD = "document.querySelector('#word').textContent"


@pytest.mark.skipif(PROGRAM is None, reason=MISSING)
class TestInTheBrowser:
    def test_reviewer_steps_and_decides_by_key(self, browser, server, tmp_path):
        browser.open(server.url)
        browser.wait(SHOWN)
        assert browser.value("document.querySelector('.value').textContent") == "0.950"
        assert browser.value("document.querySelector('#calibrated').textContent") == "calibrated 0.475"
        browser.press("a")
        browser.wait(f"{WORD}.startsWith('accepted by Anna')")
        browser.press("ArrowRight")
        assert browser.value("document.querySelector('.value').textContent") == "0.700"
        browser.press("r")
        browser.wait(f"{WORD}.startsWith('rejected by Anna')")
        browser.press("n")
        assert browser.value("document.querySelector('.value').textContent") == "0.400"
        browser.press("a")
        browser.wait(f"{WORD}.startsWith('accepted')")
        browser.press("u")
        browser.wait(f"{WORD} === 'not decided'")
        browser.press("ArrowLeft")
        browser.press("ArrowLeft")
        browser.press("ArrowLeft")
        assert browser.value("document.querySelector('.value').textContent") == "0.950"
        assert browser.value("document.querySelector('#count').textContent") == "2 of 4 decided"
        table = read_points(tmp_path / "decisions.csv", "class")
        assert (table.points_xyz.tolist(), table.values.tolist()) == ([list(POINTS[3]), list(POINTS[2])], [1.0, 0.0])
        assert browser.errors == []
        addresses = {address for address in browser.requests if not address.startswith(("about:", "data:", "blob:"))}
        assert all(address.startswith(server.url) for address in addresses)

    def test_pictures_are_those_of_the_candidate_however_fast_one_steps(self, browser, server):
        browser.open(server.url)
        browser.wait(SHOWN)
        for key in ("ArrowRight", "ArrowUp", "ArrowRight", "a", "ArrowUp", "ArrowLeft", "ArrowDown", "ArrowRight", "r",
                    "ArrowRight", "ArrowLeft", "ArrowUp"):  # fmt: skip
            browser.press(key)
        browser.wait(SHOWN)
        shown = browser.value("[...document.querySelectorAll('.view')].map(view => view.dataset.shown)")
        assert shown == [f"number=2&view={view}&step={int(view == 'axial')}&side=0&window=lung"
                         for view in ("axial", "coronal", "sagittal")]  # fmt: skip
        # what is on the screen is what the server gives for that, to the last pixel
        same = """(async () => { for (const view of document.querySelectorAll('.view')) {
            const paint = image => { const c = new OffscreenCanvas(201, 201).getContext('2d'); c.drawImage(image, 0, 0);
                return c.getImageData(0, 0, 201, 201).data.join(); };
            const fresh = await createImageBitmap(await (await fetch('slice?' + view.dataset.shown)).blob());
            if (paint(fresh) !== paint(view.querySelector('img'))) return view.dataset.view; } return 'same'; })()"""
        assert browser.value(same) == "same"
        assert browser.value("document.querySelector('.value').textContent") == "0.400"
        assert browser.errors == []

    def test_a_picture_that_cannot_be_had_is_told_and_no_other_stands_in_for_it(self, browser, tmp_path):
        paths = [write_scan(tmp_path / "ct", uid, random_hu(0)) for uid in ("a", "b")]
        write_points(tmp_path / "p.csv", ["a", "b"], POINTS[:2], [0.9, 0.1], "probability")
        with Serving(Review(tmp_path / "p.csv", paths, Decisions(tmp_path / "d.csv", "Anna"))) as server:
            browser.open(server.url)
            browser.wait(SHOWN)
            paths[1].with_suffix(".raw").unlink()
            browser.press("ArrowRight")
            browser.wait("!document.querySelector('#error').hidden")
            assert "b.raw" in browser.value("document.querySelector('#error').textContent")
            assert browser.value("document.querySelectorAll('.view.stale').length") == 3
            browser.press("ArrowLeft")
            browser.wait(SHOWN)
            browser.wait("document.querySelector('#error').hidden")
        browser.errors.clear()

    def test_wheel_and_arrows_scroll_the_view_under_the_pointer(self, browser, server):
        browser.open(server.url)
        browser.wait(SHOWN)
        note = "document.querySelector('.view[data-view={}] i').textContent"
        before = browser.value("document.querySelector('.view[data-view=axial] img').src")
        browser.press("ArrowUp")
        browser.wait(f"{note.format('axial')} === '+2.0 mm'")
        assert browser.value("document.querySelector('.view[data-view=axial] img').src") != before
        browser.roll(".view[data-view=coronal]", 100)
        browser.wait(f"{note.format('coronal')} === '−0.8 mm'")
        browser.press("ArrowDown")
        browser.wait(f"{note.format('coronal')} === '−1.5 mm'")
        assert browser.value(note.format("axial")) == "+2.0 mm"
        browser.press("0")
        browser.wait(f"{note.format('coronal')} === '' && {note.format('axial')} === ''")
        assert browser.errors == []

    def test_buttons_and_list_do_the_same_as_keys(self, browser, server):
        browser.open(server.url, dark=True)
        browser.wait(SHOWN)
        browser.click(".list li:nth-child(3) button")
        browser.click("[data-do=reject]")
        browser.wait(f"{WORD}.startsWith('rejected')")
        assert browser.value("document.querySelector('.list li:nth-child(3) small').textContent") == "rejected"
        browser.click("[data-do=wider]")
        browser.wait("document.querySelector('.view u').textContent === '20 mm'")
        browser.click("[data-do=window]")
        browser.wait("document.querySelector('#place').textContent.endsWith('mediastinum window')")
        browser.press("c")
        assert browser.value("document.body.classList.contains('no-crosshair')")
        assert browser.errors == []

    def test_page_shows_what_another_reviewer_did_and_a_hostile_name_as_text(
        self, browser, server, predictions, ct, tmp_path
    ):
        browser.open(server.url)
        browser.wait(SHOWN)
        Review(predictions, [ct], Decisions(tmp_path / "decisions.csv", HOSTILE)).decide(0, 0)
        browser.value("window.dispatchEvent(new Event('focus'))")
        browser.wait(f"{WORD}.startsWith('rejected by {HOSTILE}')")
        assert browser.errors == []

    def test_page_fits_a_phone(self, browser, server):
        browser.open(server.url, width=360, height=740, mobile=True)
        browser.wait(SHOWN)
        assert browser.value("document.documentElement.scrollWidth") == 360
        browser.click("[data-do=on]")
        assert browser.value("document.querySelector('.value').textContent") == "0.700"

    def test_page_tells_that_a_decision_was_not_saved(self, browser, server, tmp_path):
        browser.open(server.url)
        browser.wait(SHOWN)
        (tmp_path / "decisions.csv").write_text("something else", encoding="utf-8")
        browser.press("a")
        browser.wait("!document.querySelector('#error').hidden")
        assert "not saved: " in browser.value("document.querySelector('#error').textContent")
        assert browser.value(WORD) == "not decided"


def test_review_of_a_prediction_on_real_dicom(shared, tmp_path):
    folder = shared("data/ct_dicom")
    uid = "1.3.6.1.4.1.14519.5.2.1.7085.2626.242193282649561899185427104083"
    # a spiculated mass above the diaphragm, found by the blob detector
    write_points(tmp_path / "p.csv", [uid], [(-81.97, -190.98, -192.0)], [0.9], "probability")
    review = Review(tmp_path / "p.csv", [folder], Decisions(tmp_path / "d.csv", "Anna"))
    content, scrolling = review.picture(0, "axial", 0, 50.0, "lung")
    picture = np.asarray(Image.open(io.BytesIO(content)))
    assert scrolling["step_mm"] == pytest.approx(3)
    # tissue in the middle, air 20 mm to the patient's right of it
    assert picture[95:106, 95:106].mean() > 150
    assert picture[95:106, 15:26].mean() < 90


def test_review_reads_a_data_folder_in_lunas_layout(phantom_dir, tmp_path):
    table = read_candidates(phantom_dir)
    rows = [int(np.flatnonzero(table.series == code)[0]) for code in (0, 1)]
    uids = [table.series_uids[table.series[row]] for row in rows]
    write_points(tmp_path / "p.csv", uids, table.points_xyz[rows], [0.2, 0.3], "probability")
    review = Review(tmp_path / "p.csv", [phantom_dir], Decisions(tmp_path / "d.csv", "Anna"))
    assert [one["series_uid"] for one in review.candidates] == uids[::-1]
    for number in (0, 1):
        assert review.picture(number, "coronal", 0, 50.0, "lung")[0].startswith(b"\xff\xd8")

    def test_whole_slices_scroll_and_mark_the_candidates(self, browser, server):
        browser.open(server.url)
        browser.wait(SHOWN)
        browser.press("s")
        browser.wait(WHOLE)
        place = "document.querySelector('#slice').textContent"
        # the first candidate lies at z = -250; slices at -300, -298, ...
        assert browser.value(place) == "z -250.0 mm, slice 26 of 40, lung window"
        marks = (
            "[...document.querySelectorAll('.whole circle')].map(one => [one.dataset.number, one.getAttribute('cx')])"
        )
        # 14.5 mm from the first column's centre, in pixels of 0.5 mm
        assert browser.value(marks) == [["0", "29.5"]]
        box = browser.value("(() => { const b = document.querySelector('.sheet').getBoundingClientRect();"
                            " return b.width / b.height; })()")  # fmt: skip
        # 35 by 45 mm, though the voxels are oblong
        assert box == pytest.approx(35 / 45, rel=0.01)
        browser.roll(".sheet", -100)
        browser.wait(f"{WHOLE} && {place}.includes('slice 27 of 40')")
        browser.press("ArrowUp")
        browser.press("ArrowUp")
        browser.wait(f"{WHOLE} && {place}.includes('slice 29 of 40')")
        # z = -244: 4 mm from the third one, whose circle has 8 mm where no diameter is known; 6 mm from the first
        assert browser.value(marks) == [["2", "20.5"]]
        browser.press("ArrowRight")
        browser.wait(f"{WHOLE} && {place}.startsWith('z -230.0 mm')")
        browser.press("w")
        browser.wait(f"{WHOLE} && {place}.endsWith('mediastinum window')")
        browser.press("a")
        browser.wait(f"{WORD}.startsWith('accepted by Anna')")
        assert browser.value("document.querySelector('.whole circle').classList.contains('accepted')")
        browser.click("[data-plane=coronal]")
        browser.wait(f"{WHOLE} && {place}.startsWith('y -10.3 mm')")
        browser.press("s")
        browser.wait(SHOWN)
        assert browser.errors == []

    def test_a_click_into_a_whole_slice_adds_a_candidate(self, browser, server, tmp_path):
        browser.open(server.url, dark=True)
        browser.wait(SHOWN)
        browser.click("[data-do=whole]")
        browser.wait(WHOLE)
        for _ in range(3):
            browser.press("ArrowUp")
        browser.wait(f"{WHOLE} && document.querySelector('#slice').textContent.includes('slice 29')")
        browser.click(".sheet")
        assert not browser.value("document.querySelector('.whole form').hidden")
        # letters in the field are no commands
        browser.press("a")
        browser.press("Escape")
        assert browser.value("document.querySelector('.whole form').hidden")
        browser.click(".sheet")
        browser.value("document.querySelector('#diameter').value = '7.5'")
        browser.click(".whole form [type=submit]")
        browser.wait("document.querySelectorAll('.list li').length === 5")
        browser.wait(f"{WORD}.startsWith('accepted by Anna')")
        assert browser.value("document.querySelector('.value').textContent") == "added"
        assert "diameter 7.5 mm" in browser.value("document.querySelector('#place').textContent")
        table = read_points(tmp_path / "decisions.csv", "diameter_mm")
        # the middle of the slice at z = -244, to a pixel
        assert table.points_xyz[0] == pytest.approx([-82.75, -27.875, -244], abs=0.5)
        assert table.values.tolist() == [7.5]
        browser.press("u")
        browser.wait(f"{WORD} === 'not decided'")
        assert len(read_points(tmp_path / "decisions.csv", "class")) == 0
        assert browser.errors == []

    def test_page_of_a_ct_without_a_candidate_opens_in_whole_slices(self, browser, ct, tmp_path):
        write_points(tmp_path / "p.csv", [], np.zeros((0, 3)), [], "probability")
        session = Review(tmp_path / "p.csv", [ct], Decisions(tmp_path / "d.csv", "Anna"), may_be_empty=True)
        with Serving(session) as server:
            browser.open(server.url, width=360, height=740, mobile=True)
            browser.wait(WHOLE)
            assert "no candidate was found" in browser.value("document.querySelector('#count').textContent")
            assert browser.value("document.documentElement.scrollWidth") == 360
            for key in ("ArrowRight", "n", "0", "s", "s", "a"):
                browser.press(key)
            browser.click(".sheet")
            browser.value("document.querySelector('.whole form').requestSubmit()")
            browser.wait("document.querySelectorAll('.list li').length === 1")
        assert browser.errors == []
