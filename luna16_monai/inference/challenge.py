"""One case as a challenge's container gets it: a CT and its nodules in, their likelihoods of malignancy out.

As grand-challenge runs LUNA25: ``images/<any>/<one>.mha`` and ``nodule-locations.json`` below the input folder, the
answer beside its name in the output folder. Where that list is missing, the answer is about a detector's candidates.
The platform calls a container in two ways: once for each case (exec), or as a server that loads its network once
(invoke): ``GET /health`` says 200 as soon as it can work, ``POST /invoke`` treats the case that lies in the input
folder then, and says 201.

Nothing but the answer is written, whole or not at all. An answer that lies there already is removed first, so that no
other case's answer is taken for this one's.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np

from luna16_monai.inference.classifier import Classifier
from luna16_monai.inference.detect import Candidates
from luna16_monai.interchange import formats
from luna16_monai.interchange.grand_challenge import read_multiple_points
from luna16_monai.interchange.luna25 import ANSWER, CLINICAL, LOCATIONS, read_clinical
from luna16_monai.interchange.points import PROBABILITY, Points
from luna16_monai.interchange.scans import Scans
from luna16_monai.machine.errors import one_line, root_cause
from luna16_monai.machine.serving import RequestHandler, RequestServer

PORT, PORT_VARIABLE = 4743, "GRAND_CHALLENGE_COMPONENT_USER_WEBSERVER_PORT"
LONGEST_BODY = 1 << 20
PATIENCE_SECONDS = 30
NO_LUNGS = f"give a chest CT in HU, or name its nodules in {LOCATIONS}"
INPUT_ERRORS = (ValueError, LookupError, FileNotFoundError)


class Challenge:
    """Answers cases with one network, which is loaded once.

    Args:
        classifier: the malignancy bundle, or another one whose probabilities are asked for.
        input_dir: where each case lies.
        output_dir: where its answer goes.
        detect: gives the nodules of a CT where a case lists none; None refuses such a case.
    """

    def __init__(
        self, classifier: Classifier, input_dir: Path, output_dir: Path, detect: Callable[[Path], Points] | None = None
    ) -> None:
        self.classifier, self.input_dir, self.output_dir, self.detect = classifier, input_dir, output_dir, detect
        self._one_case_at_a_time = threading.Lock()

    def answer(self) -> dict[str, Any]:
        """Treat the case that lies in the input folder, and write its answer.

        Returns:
            JSON-ready: ``output``, ``points``, ``seconds``.

        Raises:
            FileNotFoundError: the CT, or the list of nodules, is missing.
            ValueError: there are several CTs, or one of the files is malformed; a nodule lies outside the CT.
        """
        with self._one_case_at_a_time:
            begun = time.monotonic()
            output = self.output_dir / ANSWER
            output.unlink(missing_ok=True)
            image, points = read_case(self.input_dir, self.detect)
            table = points.table(None)
            volumes = self.classifier.volumes([image])
            probability = self.classifier.probabilities(table, volumes) if len(table) else np.zeros(0)
            scored = Points(points.source, points.series, points.points_xyz, {PROBABILITY: probability}, points.names)
            formats.write(output, scored, formats.LUNA25)
            return {"output": str(output), "points": len(points), "seconds": round(time.monotonic() - begun, 2)}


def detected(candidates: Candidates) -> Points:
    """Return a detector's candidates as a case lists nodules, with names of their own."""
    names = tuple(f"candidate {number}" for number in range(1, len(candidates.table) + 1))
    table = candidates.table
    return Points(table.source, tuple(table.row_series()), table.points_xyz, {}, names)


def read_case(input_dir: Path, detect: Callable[[Path], Points] | None = None) -> tuple[Path, Points]:
    """Return a case's CT and its nodules, which lie in it.

    Args:
        input_dir: where the case lies.
        detect: as of `Challenge`.

    Raises:
        FileNotFoundError, ValueError: as `Challenge.answer`, and as ``detect``.
    """
    images = sorted(input_dir.glob("images/*/*.mha"))
    if len(images) != 1:
        found = ", ".join(str(path.relative_to(input_dir)) for path in images[:3]) or "none"
        error = ValueError if images else FileNotFoundError
        raise error(f"{input_dir}/images/*/*.mha: one CT a case is meant, found {found}: put one there")
    clinical = input_dir / CLINICAL
    if clinical.is_file():
        read_clinical(clinical)  # the network knows no age, but a damaged case is refused
    locations = input_dir / LOCATIONS
    if not locations.is_file():
        if detect is None:
            raise FileNotFoundError(f"{locations} is missing, and no detector is at hand: add that list")
        return images[0], detect(images[0])
    scans = Scans.open(images)
    points = read_multiple_points(locations, scans)
    scans.require(points)
    return images[0], points


def port_of(environment: dict[str, str] | os._Environ[str]) -> int:
    """Return the port that the platform names, else its usual one.

    Raises:
        ValueError: it is none.
    """
    text = environment.get(PORT_VARIABLE, "") or str(PORT)
    if not (text.isascii() and text.isdigit() and 0 <= int(text) <= 65535):
        raise ValueError(f"{PORT_VARIABLE} is {text!r}: give a number from 0 (a free port) to 65535")
    return int(text)


class ChallengeServer(RequestServer):
    """Answers ``GET /health`` and ``POST /invoke``; the network is loaded before it begins.

    It listens on every address, as the platform calls it from outside of the container. What it is sent is not read, so
    that whoever reaches it can but have the case treated that lies in the input folder.

    Args:
        challenge: treats the cases.
        port: 0 takes a free one.

    Raises:
        ValueError: the port is taken, or may not be used.
    """

    def __init__(self, challenge: Challenge, port: int) -> None:
        self.challenge = challenge
        try:
            super().__init__(("", port), _Handler)
        except OSError as error:
            raise ValueError(f"port {port} cannot be used ({error.strerror}): set {PORT_VARIABLE}") from error


class _Handler(RequestHandler):
    """One request."""

    server: ChallengeServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "luna16", ""
    timeout = PATIENCE_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Leave it to `do_POST`: a line for each look at its health would hide the cases."""

    def do_GET(self) -> None:
        """Say that it can work."""
        if self.path == "/health":
            self._send(HTTPStatus.OK, "ready")
        else:
            self._send(HTTPStatus.NOT_FOUND, "there is /health and /invoke")

    def do_POST(self) -> None:
        """Treat the case that lies in the input folder."""
        # what is not read would be taken for the next request
        self.close_connection = True
        if self.path != "/invoke":
            return self._send(HTTPStatus.NOT_FOUND, "there is /health and /invoke")
        length = self.headers.get("Content-Length", "0")
        if length.isascii() and length.isdigit() and int(length) <= LONGEST_BODY:
            self.rfile.read(int(length))
        try:
            told = self.server.challenge.answer()
        except Exception as error:
            # sent to the platform and logged, as the command would; the next case may be better
            wrong_input = isinstance(root_cause(error), INPUT_ERRORS)
            print("luna16:", one_line(error), file=sys.stderr, flush=True)
            status = HTTPStatus.BAD_REQUEST if wrong_input else HTTPStatus.INTERNAL_SERVER_ERROR
            return self._send(status, one_line(error))
        print(f"luna16: {told['points']} nodules in {told['seconds']} s", file=sys.stderr, flush=True)
        return self._send(HTTPStatus.CREATED, f"{told['points']} nodules in {ANSWER}")

    def _send(self, status: HTTPStatus, text: str) -> None:
        body = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
