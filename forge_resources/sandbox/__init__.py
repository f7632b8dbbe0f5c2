"""Where model-written programs run: an embedded interpreter, or hardened containers. Never on the host.

`open_sandbox` gives one of the two behind the protocol of `training_core.tasks.sandbox`; `probe` says whether it holds.
"""

from forge_resources.sandbox.choose import Kind, describe, open_sandbox, probed_sandbox
from forge_resources.sandbox.conformance import Conformance, probe

__all__ = ["Conformance", "Kind", "describe", "open_sandbox", "probe", "probed_sandbox"]
