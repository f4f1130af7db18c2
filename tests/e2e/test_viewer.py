"""The whole loop of an annotator in a real browser: OHIF with our panel, a real Orthanc, a real server, real models.

Chromium draws with a software WebGL, so every start of a page takes seconds: one browser for all, few pages.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_orthanc import running_orthanc
from helpers_server import add_random_weights, running_server
from helpers_viewer import Witness, browser, ct_series, file_of, padded_to, upper_abdomen
from numpy.typing import NDArray

pytest.importorskip("monailabel", reason="the server needs monailabel: scripts/setup server")
pytest.importorskip("highdicom", reason="DICOM SEG needs highdicom: scripts/setup dev")

from ctseg.building import build_bundle
from ctseg.files import write_beside
from ctseg.prediction import Predictor
from ctseg.registry import get_bundle

pytestmark = [
    # MONAI's and ITK's own, at the import of their parts.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LIVER, PAIR = "liver_ct_segmentation", "phantom_ct_segmentation"
PATIENCE = 300_000  # ms; a shared machine with two cores
SIZE = {"width": 1400, "height": 940}
# The voxels of the mask that is shown, by the UID of the slice that they lie on.
READ_VOXELS = """() => {
  const { segmentation } = window.cornerstoneTools, { cache, metaData } = window.cornerstone;
  const viewport = window.services.viewportGridService.getActiveViewportId();
  const [shown] = segmentation.state.getSegmentationRepresentations(viewport);
  const { imageIds } = segmentation.state.getSegmentation(shown.segmentationId).representationData.Labelmap;
  return imageIds.map(id => {
    const image = cache.getImage(id);
    const uid = metaData.get('instance', image.referencedImageId).SOPInstanceUID;
    let text = '';
    for (const value of image.getPixelData()) text += String.fromCharCode(value);
    return [uid, image.rows, image.columns, btoa(text)];
  });
}"""


@dataclass(frozen=True)
class Case:
    """A CT in Orthanc, and the same files in a folder."""

    study: str
    series: str
    slices: list[str]  # SOPInstanceUIDs from the feet to the head
    folder: Path


@dataclass(frozen=True)
class Site:
    """Everything that runs."""

    orthanc: Witness
    url: str
    odd: Case  # 122 x 101 pixels
    even: Case  # 128 x 104 pixels
    third: Case  # a few slices of it
    bundles: Path
    chromium: Any


def keep(array: NDArray[Any], affine: NDArray[np.float64], name: str, orthanc: Witness, folder: Path) -> Case:
    datasets = ct_series(array, affine, name)
    folder.mkdir()
    for number, dataset in enumerate(datasets):
        (folder / f"{number:03d}.dcm").write_bytes(file_of(dataset))
    orthanc.send(datasets)
    uids = [dataset.SOPInstanceUID for dataset in datasets]
    return Case(datasets[0].StudyInstanceUID, datasets[0].SeriesInstanceUID, uids, folder)


def make_bundles(folder: Path, root: Path) -> Path:
    shutil.copytree(root / "bundles" / LIVER, folder / LIVER)
    written = build_bundle(root / "tests" / "tasks" / "phantom_volume.yaml", root / "configs" / "base")
    for name, text in written.items():
        write_beside(folder / PAIR / name, text.encode())
    add_random_weights(folder / PAIR)
    return folder


@pytest.fixture(scope="module")
def site(root: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if not (root / ".viewer" / "index.html").is_file():
        pytest.skip("OHIF is not here: scripts/setup_viewer fetches it (50 MB from npm's registry)")
    work = tmp_path_factory.mktemp("site")
    array, affine = upper_abdomen(shared_data)
    upper = affine.copy()
    upper[:3, 3] = (affine @ [0, 0, 24, 1])[:3]
    with browser() as chromium, running_orthanc(work / "orthanc") as private, pytest.MonkeyPatch.context() as patch:
        orthanc = Witness(private)
        odd = keep(array, affine, "case-odd", orthanc, work / "odd")
        even = keep(padded_to(array, 128, 104)[:, :, 24:], upper, "case-even", orthanc, work / "even")
        third = keep(padded_to(array, 128, 104)[:, :, :8], affine, "case-third", orthanc, work / "third")
        bundles = make_bundles(work / "bundles", root)
        patch.setenv("MONAI_LABEL_DICOMWEB_USERNAME", private.user)
        patch.setenv("MONAI_LABEL_DICOMWEB_PASSWORD", private.password)
        conf = (("bundles", str(bundles)), ("data", str(work / "data")))
        with running_server(private.address, work, *conf) as url:
            yield Site(orthanc, url, odd, even, third, bundles, chromium)


@contextmanager
def opened(site: Site, case: Case, mask: str = "No mask yet") -> Iterator[Any]:
    """A fresh session on a case, with nothing kept from another, once the panel says `mask`.

    It ends without an error of the page's, and without a request to another address.
    """
    context = site.chromium.new_context(viewport=SIZE)
    page, errors, outside = context.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request", lambda one: outside.append(one.url) if not one.url.startswith((site.url, "blob:", "data:")) else 0
    )
    page.set_default_timeout(PATIENCE)
    page.goto(f"{site.url}/viewer/segmentation?StudyInstanceUIDs={case.study}")
    page.wait_for_selector("#ctseg-run:not([disabled])")
    page.wait_for_function("words => document.querySelector('#ctseg-mask').textContent.startsWith(words)", arg=mask)
    settled(page)
    try:
        yield page
    finally:
        context.close()
    assert outside == [], "an address outside was asked"
    assert errors == []


def with_a_mask(site: Site, case: Case) -> Case:
    """Have a model's mask stored with a case that has none yet, so that each test can run alone."""
    if not site.orthanc.labels(case.series):
        body = json.dumps({"model": PAIR, "series": case.series}).encode()
        request = urllib.request.Request(f"{site.url}/viewer/run", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert json.load(answer)["study"] == case.study
    return case


def settled(page: Any) -> None:
    """Wait until the panel has nothing to do."""
    page.wait_for_timeout(400)
    page.wait_for_selector("#ctseg[aria-busy=false]")
    page.wait_for_timeout(400)


def until(page: Any, condition: Callable[[], bool]) -> None:
    """Let the page go on until something has happened outside it."""
    for _ in range(PATIENCE // 100):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it did not happen")


def run(page: Any, model: str) -> str:
    page.select_option("#ctseg-model", model)
    page.click("#ctseg-run")
    settled(page)
    assert page.inner_text("#ctseg-error") == ""
    said: str = page.inner_text("#ctseg-status")
    assert f"{model} " in said and "is done" in said
    return said


def submit(page: Any) -> None:
    page.click("#ctseg-submit")
    settled(page)
    assert page.inner_text("#ctseg-error") == ""
    assert "is stored" in page.inner_text("#ctseg-status")


def shown_voxels(page: Any, case: Case) -> NDArray[np.uint8]:
    """The mask in the viewer, (I, J, K) from the feet to the head."""
    planes = {}
    for uid, rows, columns, text in page.evaluate(READ_VOXELS):
        planes[uid] = np.frombuffer(base64.b64decode(text), np.uint8).reshape(rows, columns).T
    assert sorted(planes) == sorted(case.slices)
    return np.stack([planes[uid] for uid in case.slices], axis=-1)


def voxels_of(seg: Any, case: Case, shape: tuple[int, ...]) -> dict[str, NDArray[np.bool_]]:
    """A stored SEG by highdicom, which is not our reader: organ -> (I, J, K)."""
    from highdicom.seg import Segmentation

    seg = Segmentation.from_dataset(seg)
    found = {}
    for number in seg.segment_numbers:
        planes = seg.get_pixels_by_source_instance(
            case.slices, segment_numbers=[number], assert_missing_frames_are_empty=True
        )
        found[seg.get_segment_description(number).segment_label] = planes[..., 0].transpose(2, 1, 0) > 0
        assert found[seg.get_segment_description(number).segment_label].shape == shape
    return found


@pytest.fixture(scope="module")
def computed(site: Site) -> Any:
    """What the library computes on the files of a case, with the same network and device."""
    networks = {name: Predictor(get_bundle(site.bundles / name), "cpu") for name in (LIVER, PAIR)}
    return lambda name, case: networks[name].predict(case.folder).label_map


def orange(picture: bytes) -> NDArray[np.bool_]:
    """Where a screenshot has the liver's colour (221, 130, 101), opaque as an outline or blended over grey."""
    import io

    from PIL import Image

    red, green, blue = np.moveaxis(np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int), -1, 0)
    return (red - green > 25) & (green - blue > 3) & (red > 90)


@pytest.mark.parametrize(("size", "models"), [("odd", [PAIR, LIVER]), ("even", [LIVER, PAIR])], ids=["odd", "even"])
def test_run_look_correct_submit_and_see_it_again(
    site: Site, computed: Any, shared_data: Path, tmp_path: Path, size: str, models: list[str]
) -> None:
    case: Case = getattr(site, size)
    with opened(site, case) as page:
        assert page.is_disabled("#ctseg-submit")
        for model in models:
            expected = computed(model, case)
            run(page, model)
            np.testing.assert_array_equal(shown_voxels(page, case), as_segments(expected))
            proposal = site.orthanc.labels(case.series)[-1]
            assert proposal.SeriesDescription == f"{model} {get_bundle(site.bundles / model).version}"
            assert {segment.SegmentAlgorithmType for segment in proposal.SegmentSequence} == {"AUTOMATIC"}
            page.screenshot(path=tmp_path / f"{model}.png")
            if model == LIVER and size == "odd":
                the_liver_is_where_it_belongs(page, expected, shared_data)
                corrected_with_the_brush(page, case)
                page.screenshot(path=tmp_path / "corrected.png")
            accepted = shown_voxels(page, case)
            submit(page)
            assert page.is_hidden("#ctseg-unsaved")
            the_label_has_arrived(site, case, accepted, model)
    with opened(site, case, "Shown: Label: ") as page:
        np.testing.assert_array_equal(shown_voxels(page, case), accepted)


def as_segments(label_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The viewer numbers the segments 1, 2; the values of the phantom's bundle are 1 and 4."""
    return np.where(label_map == 4, 2, label_map)


def corrected_with_the_brush(page: Any, case: Case) -> None:
    before = shown_voxels(page, case)
    stroke(page)
    assert page.is_visible("#ctseg-unsaved")
    after = shown_voxels(page, case)
    changed = np.argwhere(after != before)
    assert len(changed) > 20 and len(np.unique(changed[:, 2])) == 1, "the brush draws on one slice"
    assert set(after[tuple(changed.T)]) == {1}


def the_label_has_arrived(site: Site, case: Case, accepted: NDArray[np.uint8], model: str) -> None:
    label = site.orthanc.labels(case.series)[-1]
    found = voxels_of(label, case, accepted.shape)
    codes = {"liver": "10200004"} if model == LIVER else {"block": "10200004", "bar": "28231008"}
    assert list(found) == list(codes)
    for number, (segment, (organ, code)) in enumerate(zip(label.SegmentSequence, codes.items(), strict=True), start=1):
        assert np.count_nonzero(accepted == number) > 1000
        np.testing.assert_array_equal(found[organ], accepted == number)
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        assert (kind.CodeValue, kind.CodingSchemeDesignator) == (code, "SCT")
        assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("SEMIAUTOMATIC", model)


def the_liver_is_where_it_belongs(page: Any, expected: NDArray[np.uint8], shared: Path) -> None:
    """Against the reference mask voxel by voxel, and in the picture: the patient's right is on the viewer's left."""
    import nibabel as nib

    reference = np.asarray(nib.load(shared / "abdomen_ct" / "seg.nii.gz").dataobj)[::-1, ::-1, 64:112] == 5
    both = 2 * np.count_nonzero(reference & (expected == 1))
    assert both / (np.count_nonzero(reference) + np.count_nonzero(expected)) > 0.85
    box = page.locator(".viewport-element, [data-cy=viewport-pane]").first.bounding_box()
    columns = np.nonzero(orange(page.screenshot(clip=box)))[1]
    assert len(columns) > 5000
    middle = box["width"] / 2
    assert np.mean(columns < middle) > 0.7, "most of the liver lies in the right half of the body"
    assert page.locator("text=R").count() > 0


def stroke(page: Any) -> None:
    """Draw with the brush below the spine, where no liver is, and wait until it is there and known as a correction."""
    box = page.locator(".viewport-element, [data-cy=viewport-pane]").first.bounding_box()
    page.click("#ctseg-brush")
    x, y = box["x"] + box["width"] * 0.62, box["y"] + box["height"] * 0.72
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y + 10, steps=5)
    page.mouse.up()
    page.wait_for_selector("#ctseg-unsaved:not([hidden])")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_timeout(600)  # the stroke's end is put where Undo finds it


def test_corrections_are_asked_about_before_they_are_lost(site: Site) -> None:
    with opened(site, with_a_mask(site, site.odd), "Shown: ") as page:
        count = len(site.orthanc.labels(site.odd.series))
        before = shown_voxels(page, site.odd)
        stroke(page)
        corrected = shown_voxels(page, site.odd)
        for press in ("#ctseg-run", "#ctseg-empty", "#ctseg-next", "[data-cy=return-to-work-list]"):
            page.click(press)
            assert "not submitted" in page.inner_text("#ctseg-ask")
            page.keyboard.press("Escape")
            page.wait_for_selector("#ctseg-ask", state="detached")
            assert page.is_visible("#ctseg-unsaved")
        np.testing.assert_array_equal(shown_voxels(page, site.odd), corrected)
        kinds = []
        page.on("dialog", lambda dialog: (kinds.append(dialog.type), dialog.dismiss()))
        page.close(run_before_unload=True)
        until(page, lambda: bool(kinds))
        assert kinds == ["beforeunload"]
        page.click("#ctseg-undo")
        until(page, lambda: np.array_equal(shown_voxels(page, site.odd), before))
        page.click("#ctseg-empty")
        page.click("#ctseg-ask-discard")
        settled(page)
        assert not shown_voxels(page, site.odd).any()
        assert len(site.orthanc.labels(site.odd.series)) == count
        # An empty mask is drawn by hand, and an unfinished one is submitted by the question's own button.
        stroke(page)
        drawn = shown_voxels(page, site.odd)
        page.click("#ctseg-next")
        page.click("#ctseg-ask-submit")
        settled(page)
    label = site.orthanc.labels(site.odd.series)[-1]
    assert {segment.SegmentAlgorithmType for segment in label.SegmentSequence} == {"MANUAL"}
    np.testing.assert_array_equal(voxels_of(label, site.odd, drawn.shape)["liver"], drawn == 1)


def next_by(site: Site, strategy: str) -> str:
    address = f"{site.url}/activelearning/{strategy}"
    request = urllib.request.Request(address, b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer).get("id", ""))


@pytest.fixture(scope="module")
def page(site: Site) -> Iterator[Any]:
    """One session for what changes nothing that another test looks at."""
    with opened(site, with_a_mask(site, site.even), "Shown: ") as page:
        yield page


def test_the_panel_can_be_used_with_the_keyboard_and_by_name(page: Any) -> None:
    buttons, choices = ["Run model", "Submit label", "Next case", "Brush", "Undo"], ["Model", "Chosen by"]
    for role, names in {"button": buttons, "combobox": choices, "slider": ["Radius"]}.items():
        for name in names:
            assert page.locator("#ctseg").get_by_role(role, name=name, exact=True).count() == 1, name
    page.focus("#ctseg-brush")
    page.keyboard.press("Space")
    assert page.get_attribute("#ctseg-brush", "aria-pressed") == "true", "OHIF's shortcut did not take the key"


def test_the_panel_ends_where_the_window_does(page: Any) -> None:
    bottom, window = page.evaluate("[document.querySelector('#ctseg').getBoundingClientRect().bottom, innerHeight]")
    assert bottom <= window, "what is further down could not be scrolled to"


def test_a_quality_estimate_is_shown_where_the_answer_has_one(page: Any) -> None:
    organs = {"block": {"expected_dice": 0.95, "dice": 0.874, "error": 0.031}, "bar": {"dice": None, "error": None}}

    def with_estimate(route: Any) -> None:
        answer = route.fetch(timeout=PATIENCE)
        route.fulfill(response=answer, json={**answer.json(), "quality": {"dice": 0.874, "organs": organs}})

    page.route(re.compile("/viewer/run$"), with_estimate)
    run(page, PAIR)
    page.unroute(re.compile("/viewer/run$"))
    block, bar, *_ = page.locator("#ctseg-results li").all_inner_texts()
    assert re.fullmatch(r"block: [\d.]+ ml, estimated Dice 0.87 \u00b1 0.03", block)
    assert re.fullmatch(r"bar: [\d.]+ ml", bar)
    assert page.locator("#ctseg-organs label").all_inner_texts() == ["block", "bar"]
    run(page, PAIR)
    assert "Dice" not in page.inner_text("#ctseg-results")


def test_a_training_that_cannot_start_is_a_sentence(page: Any) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("it can start here: there is a GPU")
    page.select_option("#ctseg-trainer", LIVER)
    page.click("#ctseg-train")
    page.wait_for_selector("#ctseg-error:not([hidden])")
    assert re.search(r"CUDA.*no GPU.*insist", page.inner_text("#ctseg-error"))
    asked = []

    def started(route: Any) -> None:
        asked.append((route.request.method, route.request.post_data_json))
        route.fulfill(status=409, json={"detail": "only 1 patient has a label"})

    assert page.inner_text("#ctseg-train-cpu") == "Train on the CPU (slow)"
    page.route(re.compile(f"/train/{LIVER}$"), started)
    page.click("#ctseg-train-cpu")  # the explicit choice, and nothing else, asks for it
    page.wait_for_function("document.querySelector('#ctseg-error').textContent.startsWith('Only 1 patient')")
    assert asked == [("POST", {"device": "cpu"})] and page.is_hidden("#ctseg-train-cpu")
    page.unroute(re.compile(f"/train/{LIVER}$"))


def test_the_progress_of_a_training_is_shown(site: Site, page: Any) -> None:
    with urllib.request.urlopen(f"{site.url}/info/", timeout=60) as answer:
        info = json.load(answer)
    history = [{"epoch": 3, "loss": 0.25, "dice": 0.9}]
    info["train_stats"][LIVER] = {"epoch": 3, "total_epochs": 12, "best_metric": 0.91, "history": history}
    page.route(re.compile("/info/$"), lambda route: route.fulfill(json=info))
    page.route(re.compile("/train/"), lambda route: route.fulfill(json={"status": "RUNNING"}))
    page.select_option("#ctseg-trainer", LIVER)
    page.click("#ctseg-train")
    page.wait_for_function("document.querySelector('#ctseg-train-status').textContent.includes('epoch 3 of 12')")
    assert page.inner_text("#ctseg-train-status").endswith("loss 0.250, best validation Dice 0.910")
    assert page.locator("#ctseg-progress").evaluate("bar => bar.value / bar.max") == 0.25
    # It ends: the panel says what became of the new network.
    verdict = "validation Dice 0.910 on 2 cases, 0.900 for 0.1.0 before it: taken into use"
    info["train_stats"][LIVER] |= {"version": "0.1.0+new", "published": True, "verdict": verdict}
    page.unroute(re.compile("/train/"))
    page.route(re.compile("/train/"), lambda route: route.fulfill(status=404, json={"detail": "none"}))
    page.wait_for_function("document.querySelector('#ctseg-train-status').textContent.includes('taken into use')")
    assert page.inner_text("#ctseg-train-status") == f"The training of 0.1.0+new is done: {verdict}"
    page.unroute_all()


def test_scores_are_listed_and_say_why_a_case_came_next(site: Site, page: Any, tmp_path: Path) -> None:
    """The list is the server's own, the least sure first; the strategy's score stands beside the next case."""
    page.select_option("#ctseg-model", LIVER)
    page.click("#ctseg-scores summary")
    page.wait_for_function("/ scored$/.test(document.querySelector('#ctseg-scores-status').textContent)")
    with urllib.request.urlopen(f"{site.url}/scores/{LIVER}", timeout=60) as answer:
        told = json.load(answer)
    assert site.third.series in told["scored"] and told["left"] == []
    count = len(told["scored"])
    said = page.inner_text("#ctseg-scores-status")
    assert said == f"{LIVER} {told['version']}: {count} case{'s' * (count != 1)} without a label scored"
    ordered = sorted(told["scored"].values(), key=lambda score: -score["entropy"]["liver"])
    lines = [
        f"entropy {one['entropy']['liver']:.2f} bits (liver)"
        + (f", estimated Dice {one['quality']['dice']:.2f}" if one["quality"] else "")
        for one in ordered
    ]
    assert page.locator("#ctseg-scores-list li span").all_inner_texts() == lines and any("Dice" in x for x in lines)
    assert page.locator("#ctseg-scores-list").get_by_role("button", name="Open case 1 of the list").count() == 1
    page.screenshot(path=tmp_path / "scores.png")
    score = {"entropy": {"liver": 0.412}, "quality": {"dice": 0.871, "organs": {}}}
    here = {"id": site.even.series, "chosen_by": "uncertainty", "scored_cases": 2, "scores": score}
    page.route(re.compile("/activelearning/"), lambda route: route.fulfill(json=here))
    page.select_option("#ctseg-strategy", "uncertainty")
    page.click("#ctseg-next")
    page.wait_for_selector("#ctseg-why:not(:empty)")
    words = "chosen by uncertainty, of 2 scored cases: entropy 0.41 bits (liver), estimated Dice 0.87"
    assert page.inner_text("#ctseg-why") == f"This case was {words}"
    page.unroute(re.compile("/activelearning/"))
    page.select_option("#ctseg-model", PAIR)
    page.wait_for_function(f"document.querySelector('#ctseg-scores-status').textContent.startsWith('{PAIR}')")
    page.click("#ctseg-scores summary")


def test_next_case_opens_with_its_newest_mask_in_the_same_page(site: Site, page: Any) -> None:
    submit(page)
    # A model's mask is there already, but no human has accepted it: the case is still to be labelled.
    cases = {case.series: case for case in (site.odd, site.third)}
    case = with_a_mask(site, cases[next_by(site, "first")])
    page.evaluate("window.samePage = true")
    page.select_option("#ctseg-strategy", "first")
    page.click("#ctseg-next")
    page.wait_for_function("uid => location.search.includes(uid)", arg=case.study)
    words = f"CT, {len(case.slices)} slices"
    page.wait_for_function("words => document.querySelector('#ctseg-case')?.textContent === words", arg=words)
    page.wait_for_function("document.querySelector('#ctseg-mask')?.textContent.startsWith('Shown: ')")
    settled(page)
    assert page.evaluate("window.samePage")
    assert page.inner_text("#ctseg-why") == "This case was chosen by first"
    proposed = shown_voxels(page, case)
    stroke(page)
    page.evaluate("history.back()")  # within the page: OHIF would leave the case without a word
    page.click("#ctseg-ask-stay")
    assert case.study in page.url
    assert (shown_voxels(page, case) != proposed).any()
    submit(page)
    assert next_by(site, "first") != case.series, "a case that was labelled a second ago is not offered again"


def test_every_request_of_the_page_carries_the_token_in_front(site: Site) -> None:
    server = f"{site.url}/t/a-token"
    try:
        urllib.request.urlopen(f"{server}/info/", timeout=60).close()
    except urllib.error.HTTPError as error:
        error.close()
        pytest.skip(f"this server takes no token in its address ({error.code})")
    with_a_mask(site, site.third)
    context = site.chromium.new_context(viewport=SIZE)
    try:
        page, asked = context.new_page(), []
        page.on("request", lambda one: asked.append(one.url))
        page.set_default_timeout(PATIENCE)
        page.goto(f"{server}/viewer/segmentation?StudyInstanceUIDs={site.third.study}")
        page.wait_for_selector("#ctseg-run:not([disabled])")
        page.wait_for_function("document.querySelector('#ctseg-mask').textContent.startsWith('Shown: ')")
        settled(page)
    finally:
        context.close()
    assert [url for url in asked if not url.startswith((f"{server}/", "blob:", "data:"))] == []
    for part in ("/viewer/ctseg.mjs", "/info/", "/dicom-web/studies", "/frames/1", "/train/"):
        assert any(part in url for url in asked), part


def test_monailabels_own_viewer_still_opens_a_study(site: Site) -> None:
    context = site.chromium.new_context(viewport=SIZE)
    try:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{site.url}/ohif/monai-label?StudyInstanceUIDs={site.odd.study}")
        page.wait_for_selector("canvas")
        page.wait_for_selector("text=MONAI Label")
    finally:
        context.close()
