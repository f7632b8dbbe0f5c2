"""Entrypoint inside a container that runs the tests of a release with pytest. The text of this file is the program.

It reads one JSON object with "tools" and "tree" (zip archives in base 85) and "nonce"; it prints the nonce followed by
{"statuses": {node id: status}, "errors": [...]}, and nothing else reaches its output. The judge (pytest) is imported
before the code under test becomes importable.
"""

import base64
import io
import json
import os
import sys
import zipfile
from typing import Any

TOOLS, TREE = "/tmp/tools", "/tmp/tree"


class ReportPlugin:
    """A pytest plugin that records the status of every test, the worst of its phases. An expected failure counts as
    passed, as in SWE-bench's harness."""

    def __init__(self) -> None:
        self.statuses: dict[str, str] = {}
        self.errors: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Record the outcome of one phase of a test (pytest hook)."""
        if report.failed:
            self.statuses[report.nodeid] = "failed" if report.when == "call" else "error"
        elif report.skipped:
            self.statuses[report.nodeid] = "passed" if hasattr(report, "wasxfail") else "skipped"
        elif report.when == "call":
            self.statuses.setdefault(report.nodeid, "passed")

    def pytest_collectreport(self, report: Any) -> None:
        """Record a module that failed to import (pytest hook)."""
        if report.failed:
            last = str(report.longrepr).strip().splitlines()[-1].removeprefix("E").strip()
            self.errors.append(f"{report.nodeid}: {last}"[:300])


def unpack(packed: str, folder: str) -> None:
    """Unpack a zip archive in base 85 into a folder."""
    with zipfile.ZipFile(io.BytesIO(base64.b85decode(packed))) as archive:
        archive.extractall(folder)


def main() -> None:
    """Run the tests of the tree and print the report."""
    request = json.loads(sys.stdin.read())
    unpack(request["tools"], TOOLS)
    unpack(request["tree"], TREE)
    os.environ.update({"HOME": "/tmp", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    os.chdir(TREE)
    sys.path.insert(0, TOOLS)
    import pytest

    sys.path[:0] = [TREE, f"{TREE}/src"]
    report = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    reporter = ReportPlugin()
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", f"--rootdir={TREE}"]
    pytest.main(options, plugins=[reporter])
    outcome = {"statuses": reporter.statuses, "errors": reporter.errors}
    data = request["nonce"].encode() + json.dumps(outcome).encode() + b"\n"
    while data:
        data = data[os.write(report, data) :]


if __name__ == "__main__":
    main()
