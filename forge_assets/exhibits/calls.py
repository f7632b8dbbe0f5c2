"""What exhibits of attempts share: the tool calls in them."""

from collections.abc import Sequence

from forge_assets.exhibits.exhibit import Document
from forge_assets.exhibits.markup import visible


class ShownCall(Document):
    """A call of a tool, and what came back."""

    tool: str
    input: str
    output: str
    status: str


def list_items(calls: Sequence[ShownCall]) -> str:
    """The calls as items of an HTML list, empty where there is none."""
    return "".join(
        f'<li><span class="tool">{visible(call.tool)}</span> <span class="text">{visible(call.input)}</span> → '
        f'<span class="text">{visible(call.output)}</span>'
        + ("" if call.status == "ok" else f' <span class="wrong">{visible(call.status)}</span>')
        + "</li>"
        for call in calls
    )
