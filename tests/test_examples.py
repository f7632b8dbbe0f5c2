"""The examples run as a newcomer runs them, and what they print is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def printed(example: str) -> str:
    """What a script of examples/ prints, run in a process of its own."""
    script = ROOT / "examples" / example
    assert script.read_text().count("\n") < 80
    given = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, env=given)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_a_tiny_cognate_learns_to_count_down() -> None:
    text = printed("train_tiny_cognate.py")
    found = re.search(r"stories: ([\d.]+) bits per byte before training, ([\d.]+) after 153,600 tokens", text)
    assert found, text
    before, after = map(float, found.groups())
    assert before > 2.0
    # A story is one of 756 that are equally likely, 76 bytes long on average: log2(756) / 76 = .126 bits are the least.
    assert 0.12 < after < 0.25
    story = re.search(r"^(\w+) has (\d) (\w+ \w+)\. \1 gives one to \w+\. Now \.\.\. (.*)$", text, re.MULTILINE)
    assert story, text
    name, count, things, continuation = story.groups()
    assert continuation == f"{name} has {int(count) - 1} {things}."


@pytest.mark.slow
def test_the_merge_is_better_than_each_of_its_parents() -> None:
    text = printed("merge_three_models.py")
    rows = re.findall(r"^(\w+) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    measured = {name: (float(validation), float(test)) for name, validation, test in rows}
    parents = [measured.pop(name) for name in ("weather", "kitchen", "railway")]
    assert measured.keys() == {"trunk", "merge"}
    for index, split in enumerate(("validation", "test")):
        best, merge = min(parent[index] for parent in parents), measured["merge"][index]
        assert merge < best < measured["trunk"][index]
        (gain,) = re.findall(rf"on {split} text: ([\d.]+)%", text)
        assert float(gain) == pytest.approx(100 * (1 - merge / best), abs=0.06)  # the table has four digits
        assert 3 < float(gain) < 30
