"""The site of a network: what deploy.py writes, its server, and the page in a real browser."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from browsers import Page, open_browser, plain_server
from conftest import ROOT, assert_user_error, run_process, run_script
from filelock import FileLock
from makers import make_logits
from PIL import Image, ImageCms

from frames.classes import CITYSCAPES
from inference.checkpoints import load_model
from inference.engine import export_metadata
from inference.export import write_onnx
from inference.label_head import labels_from_logits
from inference.predictor import load_predictor
from street.scene import draw_scene
from utils import UserError, write_file
from web.site import PAGE, RUNTIME_FILES, RUNTIME_PACKAGE, RUNTIME_VERSION, SITE_FILES, open_site, site_aside

WEIGHTS = ROOT / "weights" / "street.pth"
WASM = "?engine=wasm&threads=1"
SMALL = 160  # longer side for an emulated graphics processor
# Everything that the page can meet, in one browser: a graphics processor, though emulated, and a camera.
FLAGS = (
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan",
    "--use-fake-device-for-media-stream",
)


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of all workers of this run."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of the shipped weights, traced once for all workers."""
    path = shared_folder(tmp_path_factory) / "street.onnx"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            model, loaded = load_model(WEIGHTS)
            write_onnx(model, export_metadata(model, "", "fp32", None, loaded["classes"]), path)
    return path


@pytest.fixture(scope="session")
def runtime(pytestconfig: pytest.Config) -> Path:
    """The unpacked npm package of ONNX Runtime Web: of ONNXRUNTIME_WEB, or in pytest's cache, gotten by npm."""
    if "ONNXRUNTIME_WEB" in os.environ:
        return Path(os.environ["ONNXRUNTIME_WEB"])
    folder = pytestconfig.cache.mkdir(f"onnxruntime-web-{RUNTIME_VERSION}")
    with FileLock(folder / "lock"):
        if not (folder / "package").exists():
            if not shutil.which("npm"):
                pytest.skip(f"needs npm, or ONNXRUNTIME_WEB, the folder of {RUNTIME_PACKAGE}")
            packed = subprocess.run(["npm", "pack", RUNTIME_PACKAGE], cwd=folder, capture_output=True, text=True)
            if packed.returncode:
                pytest.skip(f"npm cannot get {RUNTIME_PACKAGE}: {packed.stderr.strip()[:200]}")
            archive = folder / packed.stdout.split()[-1]
            with tarfile.open(archive) as tar:
                names = ["package/package.json", *(f"package/dist/{name}" for name in RUNTIME_FILES)]
                tar.extractall(folder / "new", [tar.getmember(name) for name in names], filter="data")
            (folder / "new" / "package").rename(folder / "package")
            archive.unlink()
    return folder / "package"


def deploy(traced: Path, cwd: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    """Runs deploy.py for the web, without tracing the network again."""

    def copy_onnx(model: object, metadata: dict, path: Path) -> None:
        shutil.copy(traced, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.export.write_onnx", copy_onnx)
        (cwd / "pictures").mkdir(exist_ok=True)
        cv2.imwrite(str(cwd / "pictures" / "a.png"), draw_scene(0, 64, 128)[0][..., ::-1])
        flags = ("--model_weight", WEIGHTS, "--format", "web", "--pictures", "pictures", *flags)
        return run_script("deploy.py", *flags, cwd=cwd)


@pytest.fixture(scope="session")
def site(traced: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site as deploy.py writes it, with its runtime."""
    folder = tmp_path_factory.mktemp("site")
    result = deploy(traced, folder, "--output", "site", "--runtime", runtime)
    assert result.returncode == 0, result.stderr
    return folder / "site"


@contextlib.contextmanager
def serve(site: Path) -> Iterator[str]:
    """Runs a site's own server; yields its address."""
    command = [sys.executable, site / "serve.py", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().split()[1]
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""
    with serve(site) as found:
        yield found


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """One browser for all tests of this file."""
    with open_browser(*FLAGS) as opened:
        yield opened


def go(page: Page, address: str) -> None:
    """Opens the page and waits until it is ready, or says why it is not."""
    page.errors()
    page.driver.get(address)
    page.wait_for(lambda: "ready" in page.text("status") or page.text("problem"))


def give(page, path: Path) -> None:
    """Gives a file to the page and waits for its labels, or for what the page says against it."""
    page.find("#file").send_keys(str(path))
    page.wait_for(lambda: page.text("status").startswith("Point") or page.text("problem"))


def canvas(page, identifier: str) -> np.ndarray:
    """The (H, W, 4) uint8 RGBA pixels of a canvas."""
    url = page.run(f"return document.getElementById('{identifier}').toDataURL()")
    encoded = np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8)
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)


def labels_shown(page) -> np.ndarray:
    """The (H, W) train ids whose colors the page has drawn; -1 where it drew none."""
    pixels = canvas(page, "labels").astype(int)
    same = (pixels[:, :, None, :3] == np.array(CITYSCAPES.colors)).all(-1)
    assert (same.any(-1) | (pixels[..., 3] == 0)).all()
    return np.where(pixels[..., 3] == 255, same.argmax(-1), -1)


def shown_alike(page, path: Path, input_side: int | None = None) -> float:
    """The share of a picture's pixels to which the page gives the label that load_predictor gives."""
    expected = load_predictor(WEIGHTS, input_side=input_side)(cv2.imread(str(path))[..., ::-1])
    found = labels_shown(page)
    assert found.shape == expected.shape and len(np.unique(expected)) > 4
    return float((found == expected).mean())


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A drawn street scene of 64x128."""
    cv2.imwrite(str(tmp_path / "scene.png"), draw_scene(1, 64, 128)[0][..., ::-1])
    return tmp_path / "scene.png"


# What deploy.py writes


def fake_runtime(root: Path, version: str = RUNTIME_VERSION) -> Path:
    """A package that looks like the runtime."""
    (root / "dist").mkdir(parents=True)
    (root / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": version}))
    for name in RUNTIME_FILES:
        (root / "dist" / name).write_text(name)
    return root


def files(folder: Path) -> set[str]:
    """The files of a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_site_is_complete_and_replaces_an_earlier_one(traced: Path, tmp_path: Path) -> None:
    """A page without one of its files, a runtime that stays from an earlier export, remains of the exchange."""
    fake_runtime(tmp_path / "package")
    result = deploy(traced, tmp_path, "--output", "site", "--runtime", "package")
    assert result.returncode == 0 and "1.30.0" in result.stdout
    assert files(tmp_path / "site") == SITE_FILES
    assert oct((tmp_path / "site").stat().st_mode)[-3:] == oct((tmp_path / "package").stat().st_mode)[-3:]
    flags = ("--model_weight", WEIGHTS, "--format", "web", "--pictures", "pictures", "--input_side", 0)
    result = run_script("deploy.py", *flags, "--output", "site/", cwd=tmp_path)
    assert result.returncode == 0 and "1.30.0" in result.stdout
    assert files(tmp_path / "site") == {name for name in SITE_FILES if not name.startswith("runtime/")}
    assert {path.name for path in tmp_path.iterdir()} == {"site", "package", "pictures"}
    described = json.loads((tmp_path / "site" / "network.json").read_text())
    assert described["classes"] == list(CITYSCAPES.names) and described["weights"] == "street.pth"
    assert (described["align_corners"], described["size"], described["agreement"]) == (False, None, 1)
    load_predictor(tmp_path / "site" / "network.onnx")


def test_what_is_no_site_is_not_replaced(tmp_path: Path) -> None:
    """A folder of somebody's own files that is gone after an export, or an export that is refused when it is done."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    flags = ["--model_weight", WEIGHTS, "--format", "web", "--output", "site"]
    result = run_script("deploy.py", *flags, cwd=tmp_path)
    assert_user_error(result, "--output", "index.html")
    assert files(tmp_path) == {"site/index.html"} and result.stdout == ""


def test_a_full_disk_leaves_the_earlier_site(tmp_path: Path) -> None:
    """Half a site in the place of a whole one."""
    for content in (b"earlier", bytes(100_000)):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
        full = pytest.raises(UserError, match=r"network.onnx \(File too large\): free space")
        try:
            with full if len(content) > 60_000 else contextlib.nullcontext():
                runtime = fake_runtime(tmp_path / f"package{len(content)}") / "dist"
                (runtime / RUNTIME_FILES[-1]).write_bytes(content[:50_000])
                with site_aside(open_site(tmp_path / "site"), "w.pth", {}, runtime) as path:
                    write_file(path, content)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "site" / "network.onnx").read_bytes() == b"earlier"
    assert files(tmp_path / "site") == SITE_FILES
    assert {path.name for path in tmp_path.iterdir()} == {"site", "package7", "package100000"}


def test_runtimes_that_are_refused(tmp_path: Path) -> None:
    """A page that fails at every visitor, because of what was copied into its site."""
    fake_runtime(tmp_path / "old", "1.29.0")
    (fake_runtime(tmp_path / "part") / "dist" / RUNTIME_FILES[2]).unlink()
    (tmp_path / "empty").mkdir()
    cases = {
        "none": "none has no package.json of onnxruntime-web@1.30.0; npm pack",
        "empty": "empty has no package.json",
        "old": "old is onnxruntime-web@1.29.0, expected onnxruntime-web@1.30.0",
        "part": f"part has no dist/{RUNTIME_FILES[2]}",
    }
    flags = ["--model_weight", WEIGHTS, "--output", "site", "--format", "web"]
    for folder, words in cases.items():
        assert_user_error(run_script("deploy.py", *flags, "--runtime", folder, cwd=tmp_path), words)
    assert_user_error(run_script("deploy.py", *flags, "--precision", "fp16", cwd=tmp_path), "fp32")
    flags = ["--model_weight", WEIGHTS, "--runtime", "part"]
    assert_user_error(run_script("deploy.py", *flags, cwd=tmp_path), "--runtime", "--format", "onnx")
    assert not (tmp_path / "site").exists()


def test_the_server_sends_what_threads_need() -> None:
    """One thread only, or a module that the browser refuses for its type."""
    with serve(PAGE) as address:
        for name, kind in (("app.js", "text/javascript"), ("style.css", "text/css"), ("", "text/html")):
            with urllib.request.urlopen(address + name) as response:
                assert response.headers.get_content_type() == kind
                assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
                assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        port = address.split(":")[-1].strip("/")
        taken = run_process(PAGE / "serve.py", port, cwd=ROOT)
        assert_user_error(taken, port, "serve.py 8001")
    assert_user_error(run_process(PAGE / "serve.py", "http", cwd=ROOT))


# The label head in JavaScript

RUN_HEAD = """
const heads = jobs.map(([bytes, shape, size, alignCorners]) => {
  const logits = new Float32Array(Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0)).buffer);
  return btoa(Array.from(labelsFromLogits(logits, shape, size, alignCorners), (k) => String.fromCharCode(k)).join(""));
});
"""


def javascript_labels(jobs: list, tmp_path: Path, request: pytest.FixtureRequest) -> list[np.ndarray]:
    """Runs label_head.js on (logits, size, align_corners) jobs, in node where there is one, else in the browser."""
    plain = [
        [base64.b64encode(logits.numpy().tobytes()).decode(), list(logits.shape), size, align_corners]
        for logits, size, align_corners in jobs
    ]
    program = f"const jobs = {json.dumps(plain)};{RUN_HEAD}"
    if shutil.which("node"):
        shutil.copy(PAGE / "label_head.js", tmp_path / "label_head.mjs")
        (tmp_path / "run.mjs").write_text(
            f'import {{ labelsFromLogits }} from "./label_head.mjs";{program}console.log(JSON.stringify(heads));'
        )
        done = subprocess.run(["node", "run.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
    else:
        page = request.getfixturevalue("page")
        head = (PAGE / "label_head.js").read_text().replace("export function", "function")
        page.driver.get("about:blank")
        found = page.run(f"{head}{program}return heads;")
    return [
        np.frombuffer(base64.b64decode(labels), np.uint8).reshape(size)
        for labels, (_, size, _) in zip(found, jobs, strict=True)
    ]


def test_the_head_in_javascript_is_the_one_in_python(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Labels of other pixels at margins, at near-ties, at sizes that 8 does not divide, or by other weights."""
    kinds = ["noise", "blobs", "ties", "near ties", "equal classes"]
    sizes = [(120, 160), (113, 155), (63, 250)]
    jobs = [
        (make_logits(seed, (1, 19, -(-size[0] // 8), -(-size[1] // 8)), kind)[0], size, align_corners)
        for seed, (kind, size) in enumerate((kind, size) for kind in kinds for size in sizes)
        for align_corners in (False, True)
    ]
    thirds = make_logits(97, (1, 19, 20, 30), "ties")[0]  # by thirds, equal values round to unequal ones
    jobs += [(thirds, (60, 90), False), (thirds, (58, 88), True)]
    jobs.append((make_logits(99, (1, 255, 9, 30), "noise")[0], (64, 200), False))
    jobs.append((make_logits(98, (1, 2, 40, 60), "noise")[0], (33, 130), False))  # fewer pixels than logits
    for (logits, size, align_corners), found in zip(jobs, javascript_labels(jobs, tmp_path, request), strict=True):
        expected = labels_from_logits(logits[None], size, align_corners)[0].numpy()
        assert np.array_equal(found, expected), (size, align_corners)


# The page


def swapped_profile() -> bytes:
    """A color profile by which red is blue and blue is red."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")  # in the table of tags, each before its offset and size
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.browser
@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_labels_are_those_of_python(ending: str, page, address: str, tmp_path: Path) -> None:
    """Channels in another order, pixels that are scaled or turned otherwise, another palette, a shift by a pixel."""
    path = tmp_path / f"scene{ending}"
    if ending == ".png":
        Image.fromarray(draw_scene(3, 256, 512)[0]).save(path, icc_profile=swapped_profile())
    else:  # 421 high and 250 wide, stored lying
        turned = Image.Exif()
        turned[0x0112] = 6
        Image.fromarray(np.rot90(draw_scene(5, 421, 250)[0]).copy()).save(path, exif=turned, quality=92)
    go(page, address)
    assert "WASM" in page.text("status") and page.text("notes") == ""  # of an emulated processor no use is made
    give(page, path)
    assert page.text("problem") == "" and page.text("notes") == ""
    assert page.text("size") == ("512 x 256" if ending == ".png" else "250 x 421")
    assert shown_alike(page, path) >= 0.999
    assert page.errors() == []


@pytest.mark.slow
@pytest.mark.browser
def test_webgpu_gives_the_same_labels(page: Page, runtime: Path, picture: Path, tmp_path: Path) -> None:
    """A graph that the other engine does not run, or runs otherwise. The emulated processor is slow: a small side."""
    flags = ("--model_weight", WEIGHTS, "--format", "web", "--output", "site", "--runtime", runtime)
    result = run_script("deploy.py", *flags, "--input_side", SMALL, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with serve(tmp_path / "site") as address:
        go(page, f"{address}?engine=webgpu")
        assert page.text("status") == "The network is ready, on WebGPU.", page.text("notes")
        give(page, picture)
        assert shown_alike(page, picture, SMALL) >= 0.999


@pytest.mark.browser
def test_what_was_changed_is_said(page: Page, address: str, tmp_path: Path) -> None:
    """A picture that the network sees otherwise than the user, without a word."""
    pixels = np.full((60, 1500, 4), 255, np.uint8)
    pixels[:, 750:, 3] = 0
    cv2.imwrite(str(tmp_path / "wide.png"), pixels)
    go(page, address + WASM)
    give(page, tmp_path / "wide.png")
    notes = page.text("notes")
    assert all(str(noun) in notes for noun in ("1500", "60", "1024", "41")) and "painted on black" in notes
    drawn = canvas(page, "picture")
    assert drawn.shape == (41, 1024, 4) and drawn[:, :500].min() == 255
    assert drawn[:, 520:, :3].max() == 0 and drawn[..., 3].min() == 255


@pytest.mark.browser
def test_the_longer_side_is_a_choice_where_it_decides(page: Page, address: str, site: Path, tmp_path: Path) -> None:
    """A choice that hardly changes the labels, as the network resizes pictures itself; or none at all."""
    Image.new("RGB", (1500, 600)).save(tmp_path / "wide.png")
    go(page, address + WASM)
    assert not page.find("#longest").is_displayed()
    assert all(str(noun) in page.text("about") for noun in ("fp32", "1024", "ONNX"))
    give(page, tmp_path / "wide.png")
    assert page.text("size") == "1024 x 410"
    description = json.loads((site / "network.json").read_text())
    for side, size in ((1536, "1500 x 600"), (0, "512 x 205")):
        content = json.dumps(description | {"input_side": side})
        with changed(site, tmp_path / f"{side}", **{"network.json": content}) as other:
            go(page, other + WASM)
            page.run("document.getElementById('longest').value = 512")
            give(page, tmp_path / "wide.png")
            assert page.find("#longest").is_displayed() == (side == 0) and page.text("size") == size


@pytest.mark.browser
def test_bad_pictures_are_refused_in_a_sentence(page: Page, address: str, tmp_path: Path, picture: Path) -> None:
    """A page that hangs, a tab that dies of memory, or a name that becomes part of the page."""
    (tmp_path / "<b>a.png").write_text("no picture")
    cv2.imwrite(str(tmp_path / "low.png"), np.zeros((20, 300, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "thin.png"), np.zeros((40, 3000, 3), np.uint8))
    Image.new("1", (10_000, 5001)).save(tmp_path / "huge.png")
    (tmp_path / "half.jpg").write_bytes(cv2.imencode(".jpg", draw_scene(0, 64, 128)[0])[1].tobytes()[:60])
    go(page, address + WASM)
    cases = {
        "<b>a.png": "“<b>a.png” is no picture that this browser can decode",
        "half.jpg": "“half.jpg” is no picture",
        "huge.png": "“huge.png” has 10000 x 5001 pixels, which is over 50 million: reduce it first.",
        "low.png": "has 300 x 20 pixels; the network needs 32 x 32 or more",
        "thin.png": "has 3000 x 40 pixels, reduced to 1024 x 14; the network needs 32 x 32 or more",
    }
    for name, words in cases.items():
        give(page, tmp_path / name)
        assert words in page.text("problem")
        page.run("document.getElementById('problem').textContent = ''")
    give(page, picture)
    assert page.text("problem") == "" and page.text("size") == "128 x 64"


GIVE = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const data = new DataTransfer();
if (bytes.length) {
  data.items.add(new File([bytes], "given.png", { type: "image/png" }));
} else {
  data.items.add("words", "text/plain");
}
const how = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
const send = (event) => document.body.dispatchEvent(event);
return arguments[1] === "drop"
  ? [send(new DragEvent("dragover", how)), send(new DragEvent("drop", how))]
  : send(new ClipboardEvent("paste", how));
"""


@pytest.mark.browser
def test_pictures_are_dropped_and_pasted(page: Page, address: str, picture: Path) -> None:
    """A picture that the browser opens in place of the page, or that nothing happens to."""
    go(page, address + WASM)
    for way, size in (("drop", (64, 128)), ("paste", (64, 96))):
        cv2.imwrite(str(picture), draw_scene(1, *size)[0][..., ::-1])
        goes_on = page.run(GIVE, "", way)
        assert goes_on == ([False, False] if way == "drop" else True)  # false: the browser does not open it itself
        page.wait_for(lambda: "That holds no file" in page.text("problem"))
        page.run(GIVE, base64.b64encode(picture.read_bytes()).decode(), way)
        shown = f"{size[1]} x {size[0]}"
        page.wait_for(lambda shown=shown: page.text("size") == shown)
        assert page.text("problem") == ""


@pytest.mark.browser
def test_opacity_legend_and_pointer(page: Page, address: str, picture: Path) -> None:
    """Controls that do nothing, and classes that nobody can tell apart without their colors."""
    go(page, address + WASM)
    give(page, picture)
    labels = labels_shown(page)
    shares = [entry.text.splitlines() for entry in page.driver.find_elements("css selector", "#legend li")]
    assert [name for name, _ in shares] == list(CITYSCAPES.names)
    for train_id, (_, share) in enumerate(shares):
        measured = 100 * float((labels == train_id).mean())
        assert share == ("–" if not measured else "< 0.1 %" if measured < 0.1 else f"{measured:.1f} %")
    move = "const e = document.getElementById('opacity'); e.value = 25; e.dispatchEvent(new Event('input'));"
    page.run(move)
    opacity = page.run("return getComputedStyle(document.getElementById('labels')).opacity")
    assert opacity == "0.25" and page.text("opacity-value") == "25 %"
    page.point("#frame")
    # The driver points at a whole pixel of the window, which may lie before the middle of the frame.
    middle = (
        "const box = document.getElementById('frame').getBoundingClientRect();"
        "const share = (from, length) => (Math.floor(from + length / 2) - from) / length;"
        "return [share(box.top, box.height), share(box.left, box.width)];"
    )
    row, column = (int(share * length) for share, length in zip(page.run(middle), labels.shape, strict=True))
    assert page.text("readout") == CITYSCAPES.names[labels[row, column]]
    most = int(np.bincount(labels.ravel()).argmax())
    button = page.driver.find_elements("css selector", "#legend button")[most]
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    np.testing.assert_array_equal(labels_shown(page), np.where(labels == most, labels, -1))
    button.click()
    np.testing.assert_array_equal(labels_shown(page), labels)


@contextlib.contextmanager
def changed(site: Path, folder: Path, **contents: str | None) -> Iterator[str]:
    """Serves a copy of the site, by another server than its own, without some files or with other ones."""
    shutil.copytree(site, folder, copy_function=os.symlink)
    for name, content in contents.items():
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_text(content)
    with plain_server(folder) as address:
        yield address


@pytest.mark.browser
def test_any_server_will_do_and_names_are_text(page, site: Path, tmp_path: Path, picture: Path) -> None:
    """Markup in a class's name that becomes part of the page; one thread only, without a word."""
    described = json.loads((site / "network.json").read_text())
    names = ["<img src=x onerror=alert(1)>", "a&amp;b", "../c#d%20", *(f"class {index}" for index in range(57))]
    described |= {"classes": names, "palette": [[index, 0, 255 - index] for index in range(60)], "weights": "<i>w"}
    with changed(site, tmp_path / "site", **{"network.json": json.dumps(described)}) as address:
        go(page, address)
        assert "One thread only" in page.text("notes") and "serve.py" in page.text("notes")
        assert "<i>w" in page.text("about") and "60 classes" in page.text("about")
        give(page, picture)
        shown = [entry.text for entry in page.driver.find_elements("css selector", "#legend .name")]
        assert shown == names and page.driver.find_elements("css selector", "#legend img, footer i") == []
        assert "60" in page.text("count")


@pytest.mark.browser
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("view.js", "A script of this page cannot be loaded ("),
        ("network.json", "network.json cannot be loaded (404): export the site again."),
        ("network.onnx", "network.onnx cannot be loaded (404 File not found): export the site again."),
        ("runtime/ort.wasm.min.mjs", "The runtime cannot be loaded from"),
        ("runtime/ort-wasm-simd-threaded.wasm", "/runtime/ does not start; is every file there?"),
        ("worker.js", "worker.js cannot be loaded: export the site again."),
    ],
)
def test_a_missing_file_is_named(name: str, words: str, page, site: Path, tmp_path: Path) -> None:
    """A page that loads for ever."""
    with changed(site, tmp_path / "site", **{name: None}) as address:
        go(page, address + WASM)
        assert words in page.text("problem")


@pytest.mark.browser
def test_a_damaged_description_is_named(page, site: Path, tmp_path: Path) -> None:
    """A position in JSON, to somebody who wanted to look at a picture."""
    with changed(site, tmp_path / "site", **{"network.json": '{"network": '}) as address:
        go(page, address + WASM)
        assert page.text("problem") == "network.json is damaged: export the site again."


@pytest.mark.browser
def test_from_disk_the_page_says_what_to_run(page) -> None:
    """A page that looks dead to whoever opens it by a double click."""
    page.driver.get((PAGE / "index.html").as_uri())
    assert "python serve.py" in page.text("from-disk") and "Open picture" not in page.text("main")


@pytest.mark.browser
def test_the_camera_and_its_refusal(page: Page, address: str) -> None:
    """A camera that stays on, a page that waits for a camera it will not get, labels of an earlier frame."""
    allow = functools.partial(page.driver.execute_cdp_cmd, "Browser.setPermission")
    go(page, address + WASM)
    button = page.find("#camera")
    allow({"permission": {"name": "camera"}, "setting": "denied", "origin": address})
    button.click()
    page.wait_for(lambda: "The camera was refused: allow it" in page.text("problem"))
    allow({"permission": {"name": "camera"}, "setting": "granted", "origin": address})
    page.run(
        "const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);"
        "navigator.mediaDevices.getUserMedia = async (wish) => (window.stream = await open(wish));"
    )
    button.click()
    page.wait_for(lambda: page.text("rate-name") == "frames/s" and float(page.text("rate")) > 0)
    assert page.text("problem") == "" and button.text == "Stop camera"
    first = canvas(page, "picture")
    page.wait_for(lambda: (canvas(page, "picture") != first).any())
    button.click()
    assert button.text == "Start camera" and page.text("status") == "The camera is off."
    assert page.run("return stream.getTracks().map((track) => track.readyState)") == ["ended"]
