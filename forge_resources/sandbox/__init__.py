"""Where model-written programs run: an embedded interpreter, or hardened containers. Never on the host.

`open_sandbox` gives one of the two behind the protocol of `training_core.sandbox`.
"""

from forge_resources.sandbox.choose import Kind, describe, open_sandbox

__all__ = ["Kind", "describe", "open_sandbox"]
