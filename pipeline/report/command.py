"""`tutelage report RUN` and `tutelage compare RUN RUN…`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline.display import Display
from pipeline.errors import RunError
from pipeline.report.compare import write_comparison
from pipeline.report.page import run_page, write_report
from pipeline.report.serve import Page, serve


def make_report(run: Path, output: Path | None, *, with_texts: bool, live: bool, port: int, display: Display) -> None:
    """Writes the page, or with `live` serves it until Ctrl-C. Raises RunError where no run is, or nothing can be."""
    if not live:
        _refuse_folder(output)
        path = write_report(run, output, with_texts=with_texts)
        display.note(f"{path}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser")
        return
    if output is not None:
        raise RunError("--serve writes no file; leave --output out, or --serve")
    page = Page(run, partial(run_page, run, with_texts=with_texts, live=True))
    try:
        serve(page, port, display.note)
    except OSError as error:
        raise RunError(f"port {port} cannot be had ({error.strerror}); leave --port out for a free one") from error


def make_comparison(runs: Sequence[Path], output: Path, display: Display) -> None:
    """Writes the page of several runs side by side. Raises RunError as `write_comparison`."""
    _refuse_folder(output)
    path = write_comparison(runs, output)
    display.note(f"{path}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser")


def _refuse_folder(path: Path | None) -> None:
    if path is not None and path.is_dir():
        raise RunError(f"{path}: a folder is there; name a file for --output")
