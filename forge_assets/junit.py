"""The latest verdict on every gate and claim as JUnit XML, for CI servers.

Each model is a test suite; each gate (class `gate.<asset>`) or claim (class `claim.<asset>`) is a test case. A failed
verdict is a failure even if it was overridden, a missing verdict is an error, and a model that was never made is
skipped.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence

from forge_assets.gate_history import AssetGates, GateEntry
from forge_resources.overrides import utc_text

_OUTCOMES = ("failure", "error", "skipped")


def junit_xml(models: Sequence[AssetGates]) -> str:
    """Return the JUnit document, with test counts on the root and on every suite."""
    root = ElementTree.Element("testsuites", name="Agent Forge: gates and claims")
    for gates in models:
        root.append(_suite(gates))
    _count(root, root.iter("testcase"))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(gates: AssetGates) -> ElementTree.Element:
    latest = gates.latest()
    suite = ElementTree.Element("testsuite", name=gates.asset)
    if latest:
        newest = max(latest, key=lambda entry: entry.at)
        suite.set("timestamp", utc_text(newest.at).removesuffix("Z"))
        properties = ElementTree.SubElement(suite, "properties")
        facts = {"run": newest.run_id, "digest": newest.digest, "profile": newest.profile}
        for name, value in facts.items():
            ElementTree.SubElement(properties, "property", name=name, value=_legal(value))
    for entry in latest:
        _judged(suite, entry)
    for row in gates.unjudged():
        case = _case(suite, row.asset, row.name, row.blocking)
        if gates.version is None:
            ElementTree.SubElement(case, "skipped", message=f"{row.asset} was never made")
        else:
            message = "the current version has no completed verdict; run the check"
            ElementTree.SubElement(case, "error", message=message, type="NoVerdict")
    _count(suite, suite.iter("testcase"))
    return suite


def _judged(suite: ElementTree.Element, entry: GateEntry) -> None:
    case = _case(suite, entry.asset, entry.gate, entry.blocking)
    if entry.passed:
        return
    if entry.threshold is None:
        message = entry.reason
    else:
        value = "not measured" if entry.value is None else f"{entry.value:.6g}"
        margin = "" if entry.margin is None else f", margin {entry.margin:+.6g}"
        message = f"{entry.metric} = {value}, required {entry.required()}{margin}"
    if entry.override is not None:
        message += f"; {entry.override.describe()}"
    kind = "GateFailed" if entry.blocking else "ClaimFailed"
    failure = ElementTree.SubElement(case, "failure", message=_legal(message), type=kind)
    against = f", against {entry.against}" if entry.against else ""
    failure.text = _legal(f"{entry.evidence}{against}\nrun {entry.run_id}, model {entry.digest}")


def _case(suite: ElementTree.Element, asset: str, name: str, blocking: bool) -> ElementTree.Element:
    kind = "gate" if blocking else "claim"
    return ElementTree.SubElement(suite, "testcase", classname=f"{kind}.{asset}", name=name)


def _count(element: ElementTree.Element, cases: Iterable[ElementTree.Element]) -> None:
    counted = list(cases)
    element.set("tests", str(len(counted)))
    for outcome in _OUTCOMES:
        number = sum(case.find(outcome) is not None for case in counted)
        element.set({"failure": "failures", "error": "errors"}.get(outcome, outcome), str(number))


def _legal(text: str) -> str:
    """Return `text` with the characters that XML 1.0 forbids replaced by `?`."""
    return "".join(
        c if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "?" for c in text
    )
