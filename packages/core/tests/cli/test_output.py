# SPDX-License-Identifier: Apache-2.0
"""JSON that every reader takes."""

from __future__ import annotations

import json
import math

from quanto.cli.output import print_json


def test_numbers_that_json_lacks_are_null(capsys) -> None:
    print_json({"a": math.nan, "b": [1.5, -math.inf, {"c": (2, math.inf)}], "d": "NaN"})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, None, {"c": [2, None]}], "d": "NaN"}
