"""The verb that shows what predict gave: ``review``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from luna16_monai.cli import console, prediction

if TYPE_CHECKING:
    from luna16_monai.cli.console import Verbs


def add_review(verbs: Verbs) -> None:
    """Add ``luna16 review``."""
    text = "serve a page on this machine to step through a prediction"
    verb = console.add_verb(verbs, "review", run_review, text)
    text = "what predict wrote, in any format; default: predict runs first"
    verb.add_argument("--predictions", type=Path, metavar="FILE", help=text)
    console.add_ct(verb)
    text = "of the predictions, where there are none yet; default: the CT's name with _predictions.csv, here"
    verb.add_argument("--output", type=Path, metavar="CSV", help=text)
    verb.add_argument("--port", type=int, default=0, metavar="N", help="default: a free one")
    verb.add_argument("--decisions", type=Path, metavar="CSV", help="default: beside the predictions")
    verb.add_argument("--reviewer", metavar="NAME", help="default: your login name")
    verb.add_argument("--least", type=float, default=0.0, metavar="P", help="leave less probable ones out")
    console.add_symlinks(verb)
    verb.add_argument("--ras", action="store_true", help="the predictions are RAS, not LPS as LUNA16's")
    prediction.add_stages(verb)


def run_review(options: argparse.Namespace) -> int:
    """Run ``luna16 review``; return its exit code."""
    from luna16_monai.interchange.formats import format_of
    from luna16_monai.phantom.drawn import drawn_near
    from luna16_monai.review.decisions import Decisions, login_name
    from luna16_monai.review.server import ReviewServer
    from luna16_monai.review.session import Review
    from luna16_monai.runs.seen import seen_beside, tell_seen

    reviewer, anew = options.reviewer or login_name(), options.predictions is None
    predictions = _predicted_now(options, reviewer) if anew else options.predictions
    format_of(predictions)
    path = _decisions_beside(options, predictions)
    decisions = Decisions(path, reviewer)
    session = Review(
        predictions, options.ct, decisions, options.least, options.ras, options.allow_symlinks, may_be_empty=anew
    )
    server = ReviewServer(session, options.port)
    uids = sorted({one["series_uid"] for one in session.candidates})
    print("luna16:", tell_seen([seen_beside(predictions)], uids, drawn_near(options.ct)), file=sys.stderr)
    count = len(server.review.candidates)
    result = {"url": server.url, "decisions": str(path), "reviewer": decisions.reviewer, "candidates": count}
    if anew:
        result["predictions"] = str(predictions)
    line = f"review: {server.url}\n  {count} candidates; Ctrl-C ends it"
    options.serves = True
    try:
        server.serve_until_stopped(lambda: console.tell(options, result, line))
    finally:
        held = server.review.decided()
        told = f"{server.saved} decisions saved; {path} holds {held['decided']} of {held['count']}"
        print("luna16: review has ended,", told, file=sys.stderr)
    return console.DONE


def _decisions_beside(options: argparse.Namespace, predictions: Path) -> Path:
    return options.decisions or predictions.with_name(f"{predictions.stem}_decisions.csv")


def _predicted_now(options: argparse.Namespace, reviewer: str) -> Path:
    """Run ``luna16 predict`` on the CTs; return its table. What review would refuse is refused before."""
    from luna16_monai.ct.opening import SUFFIXES
    from luna16_monai.review.decisions import Decisions
    from luna16_monai.review.server import check_port

    if options.ras:
        raise ValueError("--ras is about a table of predictions: add --predictions, or leave it out")
    name = options.ct[0].resolve().name
    name = next((name[: -len(end)] for end in SUFFIXES if name.lower().endswith(end)), name)
    output = options.output or Path(f"{name}_predictions.csv")
    if output.exists():
        raise FileExistsError(f"{output} is there: review it with --predictions {output}, or give another --output")
    Decisions(_decisions_beside(options, output), reviewer)
    check_port(options.port)
    prediction.predict_anew(options, output)
    return output
