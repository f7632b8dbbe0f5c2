"""Sandboxes for model-written programs: an embedded interpreter or hardened containers, never the host itself.

`open_sandbox` opens one of the two behind the protocol of `training_core.tasks.sandbox`; `probe` tests its isolation.
"""

from forge_resources.sandbox.choose import Kind, describe, open_sandbox, probed_sandbox
from forge_resources.sandbox.conformance import Conformance, probe

__all__ = ["Conformance", "Kind", "describe", "open_sandbox", "probe", "probed_sandbox"]
