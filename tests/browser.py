"""A JupyterLab or Voilà server of the test's own, and Debian's Chromium looking at it.

    with server(folder) as at, page() as p:
        open_lab(p, at, "demo.ipynb"); run_all(p)

Every folder that Jupyter writes to is private, the server is stopped by its own process, and
nothing is fetched.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
SHOTS = os.environ.get("DEFFI_LAB_SHOTS")  # a folder to keep screenshots in
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Server:
    "Where a server answers"

    url: str
    token: str
    voila: bool
    log: Path
    process: subprocess.Popen


def need_chromium() -> None:
    "Skips the test where there is no Chromium; fails it where DEFFI_LAB_NEEDS_BROWSER is set"
    if CHROMIUM is None and os.environ.get("DEFFI_LAB_NEEDS_BROWSER"):
        pytest.fail("DEFFI_LAB_NEEDS_BROWSER is set, but there is no chromium in PATH")
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")


def _port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _command(port: int, token: str, folder: Path, voila: Path | None) -> list[str]:
    if voila is not None:
        return [
            sys.executable,
            "-m",
            "voila",
            str(voila),
            "--no-browser",
            f"--port={port}",
            "--Voila.ip=127.0.0.1",
            f"--token={token}",
            "--show_tracebacks=True",
        ]
    quiet = [
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.news_url=None",
        "--LabApp.extension_manager=readonly",
        f"--LabApp.user_settings_dir={folder / '.j/settings'}",
        f"--LabApp.workspaces_dir={folder / '.j/work'}",
    ]
    return [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder}",
        *quiet,
    ]


@contextmanager
def server(folder: Path, voila: str | None = None) -> Iterator[Server]:
    """JupyterLab over `folder`, or Voilà showing its
    notebook `voila`; always stopped, by its own process"""
    need_chromium()
    folder = Path(folder)
    port, token = _port(), secrets.token_hex(16)
    env = dict(
        os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1")
    )
    for name in ("CONFIG", "DATA", "RUNTIME"):
        env[f"JUPYTER_{name}_DIR"] = str(folder / ".j" / name.lower())
    env.update(IPYTHONDIR=str(folder / ".j/ipython"), MPLCONFIGDIR=str(folder / ".j/mpl"))
    news = folder / ".j/settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True, exist_ok=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    log = folder / ".j" / "server.log"
    with open(log, "w") as out:
        process = subprocess.Popen(
            _command(port, token, folder, folder / voila if voila else None),
            env=env,
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            _await_answer(
                process,
                f"http://127.0.0.1:{port}/" + ("" if voila else f"api?token={token}"),
                log,
                voila,
            )
            yield Server(f"http://127.0.0.1:{port}", token, voila is not None, log, process)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_answer(
    process: subprocess.Popen, url: str, log: Path, voila: str | None, seconds: float = 60
) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended:\n{log.read_text()[-3000:]}")
        if voila:  # asking Voila for the page would run the notebook: ask the port
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", int(url.split(":")[2].strip("/")))) == 0:
                    return
        else:
            try:
                return urllib.request.urlopen(url, timeout=2).close()
            except OSError:
                pass
        time.sleep(0.2)
    raise TimeoutError(f"no answer from the server in {seconds} s:\n{log.read_text()[-3000:]}")


@contextmanager
def page(width: int = 1400, height: int = 1000, scale: float = 1.0) -> Iterator:
    "A fresh page of a fresh Chromium; its console errors are in `page.complaints`"
    need_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            p = browser.new_page(
                viewport=dict(width=width, height=height), device_scale_factor=scale
            )
            p.set_default_timeout(60_000)
            p.complaints = []
            p.on("pageerror", lambda e: p.complaints.append(str(e)))
            yield p
        finally:
            browser.close()


def notebook(path: Path, cells: list[str]) -> Path:
    "Writes a notebook of code cells"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    book.metadata["kernelspec"] = dict(name="python3", display_name="Python 3", language="python")
    nbformat.write(book, path)
    return path


READY = """() => { const w = globalThis.jupyterapp?.shell?.currentWidget, c = w?.context?.sessionContext;
               return Boolean(c?.isReady && c?.session?.kernel?.status === 'idle'); }"""  # noqa: E501


def open_lab(p, at: Server, name: str, reset: bool = True) -> None:
    "Opens a notebook and waits until its kernel is idle (in Voilà: until the page is there)"
    if at.voila:
        p.goto(f"{at.url}/?token={at.token}", wait_until="domcontentloaded", timeout=120_000)
        return
    p.goto(f"{at.url}/lab/tree/{name}?{'reset&' if reset else ''}token={at.token}")
    p.wait_for_function(READY, timeout=90_000)


def run_all(p) -> None:
    "Runs all cells of the notebook in front; AssertionError where one has failed"
    p.evaluate("() => globalThis.jupyterapp.commands.execute('notebook:run-all-cells')")
    errors = p.locator(
        ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error'], .jp-mod-error"
    )
    assert errors.count() == 0, errors.first.inner_text()


def save(p) -> None:
    "Saves the notebook in front"
    p.evaluate("() => globalThis.jupyterapp.commands.execute('docmanager:save')")


def restart_kernel(p) -> None:
    "Restarts the kernel behind the notebook in front, without asking"
    p.evaluate(
        "() => "
        "globalThis.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart()"
    )


def shot(p, name: str) -> None:
    "Keeps a screenshot where $DEFFI_LAB_SHOTS names a folder"
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        p.screenshot(path=f"{SHOTS}/{name}.png")


class LabView:
    "What a person sees and does in the lab on the page"

    def __init__(self, p):
        self.page, self.canvas = p, p.locator(".deffi-canvas").first

    def wait_drawn(self, more_than: int = 0, timeout: float = 60_000) -> int:
        "Waits until a frame beyond `more_than` is drawn; returns its number"
        self.page.wait_for_function(
            "n => Number(document.querySelector('.deffi-canvas')?.dataset?.seq ?? 0) > n",
            arg=more_than,
            timeout=timeout,
        )
        return self.seq

    def until(self, holds: Callable[[], bool], what: str, seconds: float = 30) -> None:
        """Waits until something on the page holds: a frame drawn
        meanwhile may be an older one, or lack what is looked at"""

        def now() -> bool:
            try:
                return holds()
            except (AssertionError, IndexError, KeyError, TypeError, ValueError):
                return False

        end = time.monotonic() + seconds
        while not now():
            assert time.monotonic() < end, f"not within {seconds} s: {what}"
            self.page.wait_for_timeout(100)

    @property
    def seq(self) -> int:
        return int(self.canvas.get_attribute("data-seq"))

    @property
    def words(self) -> str:
        "What a screen reader says of the picture: the only image that the browser names there"
        return self.canvas.get_by_role("img").get_attribute("aria-label")

    @property
    def status(self) -> str:
        return self.canvas.get_attribute("data-status")

    def wait_status(self, status: str, timeout: float = 30_000) -> None:
        self.page.wait_for_function(
            "s => document.querySelector('.deffi-canvas')?.dataset?.status === s",
            arg=status,
            timeout=timeout,
        )

    @property
    def index(self) -> int:
        "The step number in the status line"
        return int(self.page.locator(".deffi-status .deffi-index").first.inner_text())

    def press(self, name: str) -> None:
        "Presses Start, Pause, Step, Stop or Reset"
        self.page.locator(f"button.deffi-{name}").first.click()

    def layer(self, panel: str, number: int) -> dict:
        "A layer as the page decoded it, arrays as lists"
        return json.loads(
            self.page.evaluate(
                """([panel, i]) => JSON.stringify(
            document.querySelector('.deffi-canvas').deffi.scene.panels.find((p) => p.name === panel).layers[i],
            (k, v) => ArrayBuffer.isView(v) ? Array.from(v) : v)""",  # noqa: E501
                [panel, number],
            )
        )

    def box(self, panel: str) -> dict:
        "The axes area of a panel in page pixels"
        b = self.page.evaluate(
            """(panel) => { const el = document.querySelector('.deffi-canvas');
            const b = el.deffi.boxes.find((b) => b.name === panel), r = el.getBoundingClientRect();
            return {x: r.x + b.x, y: r.y + b.y, w: b.w, h: b.h}; }""",
            panel,
        )
        return b

    def at(self, panel: str, fx: float, fy: float) -> tuple[float, float]:
        "Page pixels of a place in a panel, as fractions from its left and top"
        self.canvas.scroll_into_view_if_needed()
        b = self.box(panel)
        return b["x"] + fx * b["w"], b["y"] + fy * b["h"]

    def click(self, panel: str, fx: float, fy: float) -> None:
        self.page.mouse.click(*self.at(panel, fx, fy))

    def drag(self, panel: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.page.mouse.move(*self.at(panel, *start))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(panel, *end), steps=5)
        self.page.mouse.up()

    def draw(self, panel: str, places: list[tuple[float, float]]) -> None:
        "A line drawn freehand through places (fractions from left and top)"
        self.page.mouse.move(*self.at(panel, *places[0]))
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*self.at(panel, *place), steps=2)
        self.page.mouse.up()

    @property
    def pause_ms(self) -> list[float]:
        "Times from the press on Pause to the status `paused`"
        return self.page.evaluate("() => document.querySelector('.deffi-canvas').deffi.pause_ms")


def reopened(p, at: Server, name: str) -> tuple[LabView, int]:
    "The lab of a saved notebook that is opened again, and its first frame"
    open_lab(p, at, name, reset=False)
    v = LabView(p)
    return v, v.wait_drawn()
