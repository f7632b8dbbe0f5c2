"""Figures as images. One that cannot be drawn is said to be so; it never ends the run that it describes."""

import base64
import io

from training_core.reporting import Figure


class UndrawableError(ValueError):
    """The data of a figure cannot be drawn."""


def png(figure: Figure, dpi: int = 100) -> bytes:
    """Return `figure` as a line plot of 6 x 3.2 inches, drawn without a display and without global state.

    Raises:
        UndrawableError: when matplotlib does not accept the data.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    buffer = io.BytesIO()
    try:
        canvas = Canvas(figsize=(6.0, 3.2))  # no layout engine: it would draw everything twice
        FigureCanvasAgg(canvas)
        axes = canvas.add_axes((0.12, 0.17, 0.84, 0.72))
        for label, (x, y) in figure.series.items():
            axes.plot(x, y, label=label, linewidth=1.2)
        for text, words in (
            (axes.title, figure.title),
            (axes.xaxis.label, figure.x_label),
            (axes.yaxis.label, figure.y_label),
        ):
            text.set_parse_math(False)  # a dollar sign is one
            text.set_text(words)
        axes.grid(visible=True, alpha=0.3)
        if len(figure.series) > 1:
            legend = axes.legend(loc="upper right")  # the default, "best", searches for a location and is slow
            for text in legend.get_texts():
                text.set_parse_math(False)
        with np.errstate(all="ignore"):  # limits of 1e308 overflow
            canvas.savefig(buffer, format="png", dpi=dpi)
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise UndrawableError(f"the figure {figure.title!r} cannot be drawn: {error}") from error
    return buffer.getvalue()


def figure_markdown(figure: Figure) -> str:
    """Return `figure` as Markdown with an inline image, which Dagster's asset page shows, or why it is not drawn."""
    try:
        image = png(figure, dpi=80)
    except UndrawableError as error:
        return str(error)
    return f"![{figure.title}](data:image/png;base64,{base64.b64encode(image).decode()})"
