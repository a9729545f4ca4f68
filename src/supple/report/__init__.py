"""One page about a folder of runs, made only from the stored results; it opens from disk and works offline."""

import os
import time
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote

import altair as alt
import vl_convert
from fsspec.implementations.local import LocalFileSystem
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from supple.lab import plasticity, problems
from supple.report import texts
from supple.report.drawings import Drawings, palette
from supple.report.overview import hardware, members_of, under_way
from supple.report.sections import sections_of
from supple.runs.files import files_at, read, write
from supple.runs.store import joined, stored
from supple.training.methods import title_of

HERE = Path(__file__).parent
TITLE = b"<title>supple: "
"""Every page that this module writes contains this text."""
AT_LEAST_EVERY = 10
"""The shortest time in seconds between two updates of a watched page; longer if writing it takes long."""


def page_of(root: str, out: str | None = None) -> str:
    """The path of the page about the runs under ``root``; by default ``index.html`` in that folder.

    Raises:
        FileNotFoundError: when there is no such folder of runs.
        ValueError: when the path is a folder, where the page would end up under a hidden name, or another file that the
            page would replace.
    """
    files, path = files_at(root)
    if not files.isdir(path):
        raise FileNotFoundError(
            f"expected a folder of runs, found none at {root}: check the name, or train a run first"
        )
    out = f"{root.rstrip('/')}/index.html" if out is None else out
    files, path = files_at(out)
    if files.isdir(path):
        raise ValueError(f"expected a file for the page, got the folder {out}: use {out.rstrip('/')}/index.html")
    if files.isfile(path) and TITLE not in read(files, path)[:1000]:
        raise ValueError(
            f"expected a new file or an earlier page, got {out}, which is something else: choose another name"
        )
    return out


def write_page(root: str, out: str | None = None, *, every: int | None = None) -> str:
    """Write the page about the runs under ``root``; return its path.

    Args:
        root: the folder of all runs, finished or still training: a path, or an address that fsspec understands.
        out: the file of the page; ``index.html`` in that folder when left out.
        every: seconds after which the page reloads itself; never when left out.
    """
    out = page_of(root, out)
    files, path = files_at(out)
    files.makedirs(os.path.dirname(path), exist_ok=True)
    write(files, path, page(root, _link_prefix(root, out), every).encode())
    return out


def watch(root: str, out: str | None = None) -> None:
    """Rewrite the page repeatedly until Ctrl-C; then write it once more, without reloading."""
    every = AT_LEAST_EVERY
    try:
        while True:
            began = time.process_time()
            write_page(root, out, every=every)
            worked = time.process_time() - began
            time.sleep(every)
            every = max(AT_LEAST_EVERY, round(5 * worked))  # use at most a fifth of a core
    except KeyboardInterrupt:
        write_page(root, out)


def page(root: str, link_prefix: str = "", every: int | None = None) -> str:
    """The page's HTML.

    Args:
        root: the folder of all runs.
        link_prefix: the prefix of links from the page to the runs' folders.
        every: see :func:`write_page`.
    """
    with warnings.catch_warnings(record=True) as unreadable:
        warnings.simplefilter("always")
        runs = stored(root)
        tests = plasticity.saved_results(root, runs)
    rows, configs = joined(runs), {name: run.config for name, run in runs.items()}
    environments = {name: run.environment for name, run in runs.items() if run.environment}
    members = members_of(configs, environments, rows)
    methods = members["method"].unique().sort().to_list() if len(members) else []
    drawings = Drawings(methods)
    sections = sections_of(members, rows, configs, tests, drawings)
    text: str = _template().render(
        root=root,
        link_prefix=link_prefix,
        every=every,
        written=time.strftime("%Y-%m-%d %H:%M %z"),
        sections=sections,
        hardware=hardware(environments),
        under_way=under_way(members),
        problems=sorted({section.problem for section in sections}),
        methods=methods,
        palette=palette(methods),
        unreadable=sorted({str(warning.message) for warning in unreadable}),
        data=drawings.text(),
        vega=_vega() if sections else "",
    )
    return text


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {name: getattr(texts, name) for name in texts.__all__}
    environment.filters |= {"method_title": title_of, "problem_title": problems.title_of}
    return environment.get_template("page.html")


def _vega() -> str:
    """The JavaScript that draws the charts."""
    major, minor, _ = alt.SCHEMA_VERSION.removeprefix("v").split(".")
    return vl_convert.javascript_bundle(vl_version=f"{major}.{minor}")  # type: ignore[call-arg]  # the rest has defaults


def _link_prefix(root: str, out: str) -> str:
    """The prefix of links from the page to the runs' folders."""
    (runs, folder), (pages, path) = files_at(root), files_at(out)
    if isinstance(runs, LocalFileSystem) and isinstance(pages, LocalFileSystem):
        between = os.path.relpath(folder, os.path.dirname(path))
        return "" if between == "." else quote(between) + "/"
    return "" if os.path.dirname(path) == folder and type(runs) is type(pages) else f"{root.rstrip('/')}/"
