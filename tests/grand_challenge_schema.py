"""grand-challenge's schema of "Multiple points", written down from the project's ``components/schemas.py``."""

from __future__ import annotations

from typing import Any

MULTIPLE_POINTS: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "type": {"enum": ["Multiple points"]},
        "points": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "type": {"enum": ["Point"]},
                    "point": {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
                    "probability": {"type": "number", "minimum": 0, "maximum": 1},
                },
                "required": ["point"],
                "additionalProperties": False,
            },
        },
        "version": {
            "type": "object",
            "additionalProperties": {"type": "number"},
            "required": ["major", "minor"],
        },
    },
    "required": ["version", "type", "points"],
    "additionalProperties": False,
}
