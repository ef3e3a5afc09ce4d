"""The page in headless Chromium: what a person sees, hears and does with it, without a network.

Needs Chromium, the extra `browser`, and onnxruntime-web as tools/build_web.py brings it; the tests with axe-core need
its --dev too.
"""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hand_made_onnx import colour_detector
from small_training import SIZE
from web_site import serving

from yolo_lat import YOLOLAT
from yolo_lat.demo.web.site import VENDOR, Asset, build_site, write_site
from yolo_lat.deploy import Detections, OnnxDetector

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = Path(__file__).parents[3] / "yolo_lat/demo/web/npm/node_modules/axe-core/axe.min.js"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--use-fake-ui-for-media-stream"),
    *("--use-fake-device-for-media-stream", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost"),
]
CONF, TRAINED_CONF = 0.05, 0.01
TOLERANCE = [0.01, 1, 1, 1, 1]  # of a score and the four sides of its box, pixels
CONTROLS = [
    "camera",
    "choose",
    "model",
    "size",
    "runtime",
    "conf",
    "scroll",
]  # that can be used before there is a picture
MODELS: dict[str, dict[str, Any]] = {
    "float32": {},
    "half": {"dtype": np.float16},
    "bytes": {"takes_bytes": True, "best_class": True},
}

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; run pip install '.[browser]'"
)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(not VENDOR.is_dir(), reason="onnxruntime-web was not built; run python tools/build_web.py"),
]


def scene(width: int = 320, height: int = 240, shift: int = 0) -> np.ndarray:
    """A dark picture with a red and a blue block and a little noise; `shift` moves the red one."""
    image = np.random.default_rng(0).integers(0, 40, (height, width, 3), np.uint8)
    image[height // 4 : height // 2, width // 3 + shift : width // 2 + shift] = (10, 20, 240)
    image[height * 5 // 8 : height * 7 // 8, width // 10 : width // 4] = (204, 30, 20)
    return image


def write_y4m(path: Path, frames: list[np.ndarray]) -> Path:
    """Write BGR images as the kind of film that Chromium plays in place of a camera."""
    height, width = frames[0].shape[:2]
    parts = [b"YUV4MPEG2 W%d H%d F10:1 Ip A1:1 C420jpeg\n" % (width, height)]
    for frame in frames:
        parts += [b"FRAME\n", cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420).tobytes()]
    path.write_bytes(b"".join(parts))
    return path


@dataclass
class Page:
    """A page of the browser, and all that it complained of."""

    page: Any
    faults: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        return self.page.locator(f"#{name}").inner_text()

    def wait(self, selector: str) -> Any:
        found = self.page.locator(selector).first
        try:
            found.wait_for(timeout=20_000)
        except sync_api.TimeoutError:
            said = {name: self.text(name) for name in ("alert", "status", "summary", "conf-value", "pause", "skipped")}
            pytest.fail(f"no {selector} within 20 s; the page says {said}, its faults are {self.faults}")
        return found

    def open(self, url: str) -> Page:
        self.page.goto(url)
        self.wait("#status:has-text('ready')")
        return self

    def choose(self, index: int) -> None:
        label = self.page.locator("#model option").nth(index).inner_text().split()[0]
        with self.detecting(self.page.is_visible("#view")):
            self.page.select_option("#model", index=index)
            self.wait(f"#status:has-text('{label} is ready')")

    def resize(self, imgsz: int) -> None:
        with self.detecting(self.page.is_visible("#view")):
            self.page.select_option("#size", f"{imgsz},{imgsz}")

    def show(self, file: Path) -> None:
        with self.detecting():
            self.page.set_input_files("#file", file)

    @contextmanager
    def detecting(self, expected: bool = True) -> Iterator[None]:
        """Wait at the end until the page says what it found, if that is expected."""
        if expected:
            self.page.evaluate("document.getElementById('summary').textContent = ''")
        yield
        if expected:
            self.wait("#summary:not(:empty)")

    def rows(self) -> list[list[str]]:
        return [row.split("\t") for row in self.page.locator("#rows").inner_text().splitlines()]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [colour_detector(folder / f"{name}.onnx", **options) for name, options in MODELS.items()]


@pytest.fixture(scope="module")
def url(models) -> Iterator[str]:
    with serving(build_site(models, CONF)) as server:
        yield server.url


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[..., Any]]:
    """Start a browser with more flags."""
    with sync_api.sync_playwright() as playwright:
        yield lambda *flags: playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])


@pytest.fixture(scope="module")
def browser(launch, tmp_path_factory) -> Iterator[Any]:
    film = tmp_path_factory.mktemp("film") / "camera.y4m"
    write_y4m(film, [scene(shift=shift) for shift in (*range(0, 60, 4), *range(60, 0, -4))])
    chromium = launch(f"--use-file-for-fake-video-capture={film}")
    yield chromium
    chromium.close()


@contextmanager
def new_page(browser: Any, **options: Any) -> Iterator[Page]:
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    page = Page(context.new_page())
    page.page.on("console", lambda message: message.type == "error" and page.faults.append(message.text))
    page.page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.page.on("request", lambda request: page.addresses.append(request.url))
    yield page
    context.close()
    assert page.faults == []


@pytest.fixture
def page(browser) -> Iterator[Page]:
    with new_page(browser) as opened:
        yield opened


def assert_same(rows: list[list[str]], found: Detections) -> None:
    """Compare the table of the page with what Python found: each box of one has its like in the other.

    Alike are boxes of a class within 1 px and 0.01 in score. Boxes that score within 0.002 of the last one shown may be
    in either alone, since the last digit of a score decides.
    """
    shown = [(row[0], [float(value) for value in row[1:]]) for row in rows if len(row) == 6]
    values = np.column_stack([found.scores, found.boxes_xyxy]).tolist()
    wanted = [(found.names[int(i)], numbers) for i, numbers in zip(found.class_ids, values, strict=True)]
    limit = min([numbers[0] for _, numbers in shown], default=0) + 0.002
    for ours, theirs in ((shown, wanted), (wanted, shown)):
        rest = list(theirs)
        for name, numbers in ours:
            if numbers[0] > limit:
                like = [other for other in rest if other[0] == name and np.allclose(other[1], numbers, 0, TOLERANCE)]
                assert like, f"{name} {numbers} is in one alone"
                rest.remove(like[0])


@pytest.mark.parametrize("kind", MODELS)
def test_a_picture_has_the_boxes_of_python(page, url, models, tmp_path, kind):
    page.open(url)
    index = list(MODELS).index(kind)
    if index:
        page.choose(index)
    for suffix in ("png", "jpg"):
        file = tmp_path / f"picture.{suffix}"
        cv2.imwrite(str(file), scene(321, 247))
        page.show(file)
        assert_same(page.rows(), OnnxDetector(models[index], conf=CONF)(cv2.imread(str(file))))
        count = len(page.rows())
        assert count > 2
        assert page.text("summary").startswith(f"{count} found: ")
        assert page.page.get_attribute("#view", "aria-label") == f"Picture. {page.text('summary')}"


def test_it_works_without_a_network_and_asks_no_other_host(page, url, tmp_path):
    page.open(url)
    page.page.context.set_offline(True)
    cv2.imwrite(str(tmp_path / "picture.png"), scene())
    page.show(tmp_path / "picture.png")
    assert "red" in page.text("summary")
    assert page.addresses
    assert {address for address in page.addresses if not address.startswith((url, f"blob:{url}"))} == set()
    assert not any("webgpu" in address for address in page.addresses), "the page fetched what it does not run"


def test_the_camera(page, url):
    page.open(url)
    assert page.page.get_by_role("button", name="Pause").is_disabled()
    page.page.get_by_role("button", name="Start camera").click()
    page.wait("#summary:has-text('red')")
    page.page.wait_for_timeout(1500)
    assert float(page.text("fps")) > 2
    for stage in ("read", "prepare", "network", "boxes", "draw", "total"):
        assert 0 <= float(page.text(stage)) < 1000
    assert int(page.text("skipped")) >= 0
    boxes = set()
    for _ in range(10):  # the block moves
        boxes |= {tuple(row[2:]) for row in page.rows() if row[0] == "red" and float(row[1]) > 0.4}
        page.page.wait_for_timeout(150)
    assert len(boxes) > 2
    page.page.click("#pause")
    assert page.text("pause") == "Play"
    page.page.click("#stop")
    assert page.page.is_disabled("#stop")
    assert page.text("alert") == ""


def write_film(path: Path) -> Path:
    film = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"VP80"), 10, (320, 240))
    for shift in range(0, 40, 2):
        film.write(scene(shift=shift))
    film.release()
    if not path.is_file() or path.stat().st_size < 1000:
        pytest.skip("this OpenCV writes no VP8")
    return path


def test_a_film(page, url, tmp_path):
    page.open(url)
    page.show(write_film(tmp_path / "film.webm"))
    page.wait("#summary:has-text('red')")
    page.page.click("#pause")
    page.page.wait_for_timeout(500)
    before = len(page.rows())
    page.page.fill("#conf", "1")
    page.wait("#summary:has-text('Nothing found')")
    page.page.fill("#conf", str(CONF))
    page.wait("#summary:has-text('red')")
    assert len(page.rows()) == before
    page.page.click("#pause")
    page.page.wait_for_timeout(500)
    assert float(page.text("fps")) > 1


@pytest.mark.slow
def test_a_film_waits_for_those_who_want_less_motion(browser, url, tmp_path):
    film = write_film(tmp_path / "film.webm")
    with new_page(browser, reduced_motion="reduce") as page:
        page.open(url).show(film)
        assert page.text("pause") == "Play"


def test_a_dropped_picture(page, url, tmp_path):
    page.open(url)
    cv2.imwrite(str(tmp_path / "picture.png"), scene())
    data = list((tmp_path / "picture.png").read_bytes())
    page.page.evaluate(
        """(data) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(data)], "picture.png", { type: "image/png" }));
            const drop = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
            document.getElementById("frame").dispatchEvent(drop);
        }""",
        data,
    )
    page.wait("#summary:has-text('red')")
    with page.page.expect_download() as saving:
        page.page.click("#save")
    saving.value.save_as(tmp_path / "saved.png")
    assert cv2.imread(str(tmp_path / "saved.png")).shape == (480, 640, 3)  # small ones are enlarged


def test_what_cannot_be_read_is_said_and_survived(page, url, tmp_path):
    page.open(url)
    for name, words in (("text.png", "no picture that this browser"), ("text.mp4", "no video that this browser")):
        (tmp_path / name).write_text("text")
        page.page.set_input_files("#file", tmp_path / name)
        page.wait(f"#alert:has-text('{name} is {words}')")
    cv2.imwrite(str(tmp_path / "picture.png"), scene())
    page.show(tmp_path / "picture.png")
    assert page.text("alert") == ""


def test_a_camera_that_is_refused_and_one_that_is_unplugged(page, url):
    page.page.add_init_script("""
        const devices = navigator.mediaDevices;
        const original = devices.getUserMedia.bind(devices);
        devices.getUserMedia = async (wanted) => {
            if (globalThis.refused) throw new DOMException("refused", globalThis.refused);
            const stream = await original(wanted);
            globalThis.unplug = () => stream.getVideoTracks()[0].dispatchEvent(new Event("ended"));
            return stream;
        };
    """)
    page.open(url)
    for name, words in (
        ("NotAllowedError", "The camera is not allowed on this page; allow it"),
        ("NotFoundError", "No camera was found; connect one"),
        ("NotReadableError", "The camera is used by another program"),
        ("AbortError", "The camera did not start (refused)"),
    ):
        page.page.evaluate("(name) => { globalThis.refused = name; }", name)
        page.page.click("#camera")
        page.wait(f"#alert:has-text('{words}')")
    page.page.evaluate("() => { globalThis.refused = ''; }")
    page.page.click("#camera")
    page.wait("#summary:has-text('red')")
    assert page.text("alert") == ""
    page.page.evaluate("() => globalThis.unplug()")
    page.wait("#alert:has-text('The camera stopped; connect it again')")
    assert page.page.is_disabled("#stop")


def test_a_model_that_does_not_open_and_the_next_that_does(browser, models, tmp_path):
    site = build_site(models, CONF)
    site["models/float32.onnx"] = Asset("application/octet-stream", b"no model")
    cv2.imwrite(str(tmp_path / "picture.png"), scene())
    with serving(site) as server, new_page(browser) as page:
        page.page.goto(server.url)
        page.wait("#alert:has-text('float32 cannot run on WASM (')")
        assert page.text("alert").endswith("; export it again or choose another.")
        page.page.set_input_files("#file", tmp_path / "picture.png")
        page.choose(1)
        page.wait("#summary:has-text('red')")
        assert page.text("alert") == ""
        page.faults[:] = [fault for fault in page.faults if "onnxruntime" not in fault]


@pytest.mark.slow
def test_the_model_that_was_chosen_last_is_the_one_that_runs(page, url):
    page.open(url)
    page.page.click("#camera")
    for index in (1, 2, 0, 1, 2):
        page.page.select_option("#model", index=index)
    page.wait("#status:has-text('bytes is ready on WASM')")
    page.page.wait_for_timeout(1000)
    assert page.text("status") == "bytes is ready on WASM"
    assert page.text("alert") == ""
    assert float(page.text("fps")) > 1


def focused(page: Page) -> str:
    return page.page.evaluate("document.activeElement.id || document.activeElement.tagName")


def test_everything_can_be_done_with_the_keyboard(page, url):
    page.open(url)
    reached = []
    for _ in range(20):
        page.page.keyboard.press("Tab")
        outline = page.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        if focused(page) in {"A", "BODY"}:
            break
        assert outline == "solid", f"{focused(page)} does not show its focus"
        reached.append(focused(page))
    assert reached == CONTROLS
    press = page.page.keyboard.press
    page.page.focus("#camera")
    press("Enter")
    page.wait("#summary:has-text('red')")
    press("Tab")
    press("Tab")
    assert focused(page) == "pause"
    press("Space")
    assert page.text("pause") == "Play"
    page.page.focus("#conf")
    for _ in range(3):
        press("ArrowRight")
    assert page.text("conf-value") == f"{CONF + 0.03:.2f}"
    page.page.focus("#model")
    press("ArrowDown")
    page.wait("#status:has-text('half is ready')")
    page.page.focus("#stop")
    press("Enter")
    assert page.page.is_disabled("#stop")


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        (360, "dark"),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
        pytest.param(360, "light", marks=pytest.mark.slow),
    ],
)
def test_axe_finds_nothing_and_the_page_fits(browser, url, tmp_path, scheme, width):
    if not AXE.is_file():
        pytest.skip("axe-core is not installed; run python tools/build_web.py --dev")
    cv2.imwrite(str(tmp_path / "picture.png"), scene())
    viewport = {"width": width, "height": 740}
    with new_page(browser, viewport=viewport, color_scheme=scheme, bypass_csp=True) as page:
        page.open(url)
        page.page.add_script_tag(path=AXE)
        for _ in range(2):
            found = page.page.evaluate("axe.run()")["violations"]
            assert [(fault["id"], fault["impact"], fault["nodes"][0]["html"]) for fault in found] == []
            page.show(tmp_path / "picture.png")
            assert page.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_foreign_host_without_headers_gets_one_thread(browser, models, tmp_path):
    folder = write_site(build_site(models[:1], CONF), tmp_path / "site")
    cv2.imwrite(str(tmp_path / "picture.png"), scene())

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with new_page(browser) as page:
            page.open(f"http://localhost:{server.server_address[1]}/index.html")
            assert page.text("running") == "WASM, 1 thread, for want of headers"
            page.show(tmp_path / "picture.png")
            assert_same(page.rows(), OnnxDetector(models[0], conf=CONF)(scene()))
        server.shutdown()


@pytest.mark.slow
def test_webgpu_has_the_boxes_of_python(launch, url, models, tmp_path):
    """On the graphics card that Chromium's own software imitates."""
    cv2.imwrite(str(tmp_path / "picture.png"), scene())
    flags = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
    with closing(launch(*flags)) as browser, new_page(browser) as page:
        page.open(url)
        if page.text("running") != "WebGPU":
            pytest.skip("this Chromium imitates no graphics card")
        page.show(tmp_path / "picture.png")
        assert_same(page.rows(), OnnxDetector(models[0], conf=CONF)(scene()))
        page.page.select_option("#runtime", "wasm")
        page.wait("#status:has-text('ready on WASM')")


@pytest.mark.slow
def test_trained_models_have_the_boxes_of_python(browser, run, tmp_path):
    """Every form of export, on pictures of the data set, in the size of the export and in another."""
    forms: dict[str, dict[str, Any]] = {
        "static": {},
        "dynamic": {"dynamic": True},
        "half": {"half": True},
        "best": {"best_class": True, "preprocess": True},
        "nms": {"nms": True, "conf": 0.01},
    }
    files = [
        Path(YOLOLAT(shutil.copy(run.best, tmp_path / f"{name}.pt")).export(imgsz=SIZE, **options))
        for name, options in forms.items()
    ]
    pictures = sorted((run.data.parent / "images/val").iterdir())[:4]
    counts: dict[tuple[str, int], int] = {}
    with serving(build_site(files, TRAINED_CONF)) as server, new_page(browser) as page:
        page.open(server.url)
        for index, (name, file) in enumerate(zip(forms, files, strict=True)):
            if index:
                page.choose(index)
            for imgsz in (SIZE, 320) if name == "dynamic" else (SIZE,):
                page.resize(imgsz)
                detector = OnnxDetector(file, conf=TRAINED_CONF, imgsz=imgsz)
                for picture in pictures:
                    page.show(picture)
                    found = detector(cv2.imread(str(picture)))
                    counts[name, imgsz] = counts.get((name, imgsz), 0) + len(found)
                    assert_same(page.rows(), found)
    assert min(counts.values()) > 0, counts


@pytest.mark.slow
def test_a_real_clip_through_the_camera_and_as_a_picture(launch, real_clip, run, tmp_path):
    """A network trained on drawn shapes takes something for one, at a low threshold, in any street."""
    frames, capture = [], cv2.VideoCapture(str(real_clip("car-detection.mp4")))
    while len(frames) < 60:
        frames.append(cv2.resize(capture.read()[1], (640, 360), interpolation=cv2.INTER_AREA))
    file = Path(YOLOLAT(shutil.copy(run.best, tmp_path / "trained.pt")).export(imgsz=320, target="cpu"))
    cv2.imwrite(str(tmp_path / "frame.png"), frames[0])
    film = write_y4m(tmp_path / "street.y4m", frames)
    site = build_site([file], TRAINED_CONF)
    with (
        closing(launch(f"--use-file-for-fake-video-capture={film}")) as chromium,
        serving(site) as server,
        new_page(chromium) as page,
    ):
        page.open(server.url)
        page.page.context.set_offline(True)
        page.show(tmp_path / "frame.png")
        found = OnnxDetector(file, conf=TRAINED_CONF)(frames[0])
        assert len(found) > 0
        assert_same(page.rows(), found)
        page.page.click("#camera")
        page.wait("#summary:has-text(' found: ')")
        page.page.wait_for_timeout(1500)
        assert float(page.text("fps")) > 1
        assert page.text("alert") == ""
