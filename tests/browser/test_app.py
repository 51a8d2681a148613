"""The page of tools/app.py in a browser (`make test-app`). Models are untrained; tests/apis has what they compute."""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tool_processes import ToolProcess
from untrained import save_untrained

DETECTION = ROOT / 'configs/maskrcnn_cvttiny_fpn_shapes.py'
SEGMENTATION = ROOT / 'configs/upernet_cvttiny_shapes.py'
SECONDS = 120  # in which a page does anything, on a busy machine
CIRCLE = (0, 255, 255)

expect.set_options(timeout=1000 * SECONDS)


@pytest.fixture(scope='module')
def browser() -> Iterator[Browser]:
    chromium = shutil.which(os.environ.get('CHROMIUM', 'chromium'))
    assert chromium, 'no Chromium was found (Debian: apt-get install chromium; elsewhere CHROMIUM=PATH)'
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-gpu'])
        yield started
        started.close()


@contextmanager
def running(config: Path, folder: Path, *arguments: object) -> Iterator[tuple[str, ToolProcess, Path]]:
    """The tool with a model of a config: the page's address, its process, and what it writes."""
    checkpoint = save_untrained(config, folder / f'{config.stem}.pth')
    log = folder / f'{config.stem}.txt'
    env = os.environ | {'TMPDIR': str(folder)}
    process = ToolProcess([ROOT / 'tools/app.py', config, checkpoint, '--device', 'cpu', *arguments], log, env=env)
    try:
        deadline = time.monotonic() + 5 * SECONDS
        while not (found := re.search(r'^the page is at (http://\S+) until Ctrl-C$', log.read_text(), re.M)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield found[1], process, log
    finally:
        process.kill()


@pytest.fixture(scope='module')
def detector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    few = ('--score-thr', 0, '--cfg-options', 'model.test_cfg.rcnn.max_per_img=9')
    with running(DETECTION, tmp_path_factory.mktemp('detector'), *few) as (address, _, _):
        yield address


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[[str], Page]]:
    """Opens an address in a browser of its own; whatever it asks another address for fails the test."""
    contexts, asked = [], []

    def open_page(address: str) -> Page:
        context = browser.new_context(viewport=dict(width=1400, height=900))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * SECONDS)
        page.on('request', lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_selector('#first input[type=file]', state='attached')
        return page

    yield open_page
    for context in contexts:
        context.close()
    local = re.compile(r'(https?://(127\.0\.0\.1|localhost):\d+/|data:|blob:)')
    assert [url for url in asked if not local.match(url)] == []


def picture(path: Path, width: int, height: int) -> Path:
    blocks = np.random.default_rng(width).integers(0, 200, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(path)
    return path


def send(page: Page, path: Path, which: str = 'first') -> None:
    """Choose a file in the place of the first or the second picture, and wait for what the page says about it."""
    page.set_input_files(f'#{which} input[type=file]', path)
    expect(page.locator(f'#{which}-note')).to_contain_text(path.name)


def shown(page: Page, name: str) -> np.ndarray:
    """The picture ``(h, w, 3)`` in a place of the page."""
    source = page.locator(f'#{name} img').get_attribute('src')
    return np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert('RGB'))


def numbers(page: Page) -> list[float]:
    """The second column of the table."""
    return [float(text) for text in page.locator('#table [role=gridcell][aria-colindex="2"]').all_inner_texts()]


def test_a_picture_is_predicted_on_and_the_slider_draws_it_again(
    detector: str, opened: Callable[[str], Page], tmp_path: Path
) -> None:
    page = opened(detector)
    send(page, picture(tmp_path / 'one.png', 150, 100))
    expect(page.locator('#first-note')).to_have_text('one.png: 150×100 pixels')
    page.wait_for_selector('#drawn img')
    assert shown(page, 'drawn').shape == (400, 600, 3)
    table = page.locator('#table [role=grid]')
    expect(table).to_have_attribute('aria-rowcount', '10')
    found = numbers(page)
    assert len(found) == 9
    assert found == sorted(found, reverse=True)
    before = page.locator('#drawn img').get_attribute('src')
    threshold = math.ceil(100 * found[-1] + 0.1) / 100  # a step of the slider, above at least one
    page.fill('#score input[type=number]', str(threshold))
    page.press('#score input[type=number]', 'Enter')
    expect(page.locator('#drawn img')).not_to_have_attribute('src', before)
    expect(table).not_to_have_attribute('aria-rowcount', '10')
    assert numbers(page) == [score for score in found if score >= threshold]


def test_a_click_shows_what_its_point_attends_to(detector: str, opened: Callable[[str], Page], tmp_path: Path) -> None:
    page = opened(detector)
    send(page, picture(tmp_path / 'one.png', 150, 100))
    page.get_by_role('tab', name='Inside').click()
    expect(page.locator('#inside-note')).to_have_text('one.png: point 75, 50 of 150×100 pixels')
    expect(page.locator('#attention img')).to_have_count(4)
    expect(page.locator('#maps img')).to_have_count(3)
    expect(page.locator('#attention')).to_contain_text(re.compile(r'stage 2, block 1: [\d.]+×, cls [\d.]+ %'))
    before = page.locator('#attention img').first.get_attribute('src')
    place = page.locator('#to-click img').bounding_box()
    page.mouse.click(place['x'] + place['width'] * 30.5 / 150, place['y'] + place['height'] * 80.5 / 100)
    expect(page.locator('#inside-note')).to_have_text(re.compile('one.png: point (29|30|31), (79|80|81) of 150×100'))
    expect(page.locator('#attention img').first).not_to_have_attribute('src', before)
    rows, columns = np.nonzero((shown(page, 'to-click') == CIRCLE).all(2))
    assert abs(rows.mean() / 400 - 0.805) < 0.02
    assert abs(columns.mean() / 600 - 30.5 / 150) < 0.02


def test_two_pictures_are_compared(detector: str, opened: Callable[[str], Page], tmp_path: Path) -> None:
    page = opened(detector)
    page.get_by_role('tab', name='Compare').click()
    send(page, picture(tmp_path / 'one.png', 150, 100))
    expect(page.locator('#first-maps img')).to_have_count(3)
    send(page, picture(tmp_path / 'two.png', 120, 120), 'second')
    for side in ('first', 'second'):
        for name, count in (('likeness', 3), ('maps', 3), ('attention', 4)):
            expect(page.locator(f'#{side}-{name} img')).to_have_count(count)
    before = page.locator('#first-likeness img').first.get_attribute('src')
    page.locator('#second-side img').click(position=dict(x=100, y=100))
    expect(page.locator('#compare-note')).not_to_contain_text('two.png: point 60, 60')
    expect(page.locator('#first-likeness img').first).not_to_have_attribute('src', before)


@pytest.mark.parametrize('content', [b'no picture', b'', b'\x89PNG\r\n\x1a\n'], ids=['text', 'empty', 'cut'])
def test_a_broken_file_is_one_line_and_the_page_goes_on(
    content: bytes, detector: str, opened: Callable[[str], Page], tmp_path: Path
) -> None:
    page = opened(detector)
    send(page, picture(tmp_path / 'one.png', 150, 100))
    page.wait_for_selector('#drawn img')
    (tmp_path / 'broken.png').write_bytes(content)
    page.get_by_label('Remove Image').first.click()
    expect(page.locator('#drawn img')).to_have_count(0)
    send(page, tmp_path / 'broken.png')
    expect(page.locator('#first-note [role=alert]')).to_contain_text('broken.png: it cannot be read as an image (')
    send(page, picture(tmp_path / 'two.png', 120, 120))
    page.wait_for_selector('#drawn img')


def test_two_tabs_do_not_mix(detector: str, opened: Callable[[str], Page], tmp_path: Path) -> None:
    pages = [opened(detector), opened(detector)]
    for page, (width, height) in zip(pages, ((150, 100), (60, 120))):
        send(page, picture(tmp_path / f'{width}.png', width, height))
    for page, (width, height) in zip(pages, ((150, 100), (60, 120))):
        page.get_by_role('tab', name='Inside').click()
        expect(page.locator('#inside-note')).to_contain_text(f'{width}.png: point {width // 2}, {height // 2} ')
        expect(page.locator('#to-click img')).to_have_count(1)
        assert shown(page, 'to-click').shape[0] * width == shown(page, 'to-click').shape[1] * height


def test_a_segmentor_has_shares_and_no_slider_and_ctrl_c_ends_it(opened: Callable[[str], Page], tmp_path: Path) -> None:
    with running(SEGMENTATION, tmp_path, '--host', '0.0.0.0', '--port', 7990) as (address, process, log):
        assert 'warning: whoever reaches 0.0.0.0 can use the page' in log.read_text()
        assert address == 'http://localhost:7990/'
        page = opened(address)
        send(page, picture(tmp_path / 'one.png', 150, 100))
        page.wait_for_selector('#drawn img')
        assert sum(numbers(page)) == pytest.approx(100, abs=0.1)
        assert not page.locator('#score').is_visible()
        page.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130
        assert log.read_text().splitlines()[-1] == 'stopped by SIGINT'
        assert list(tmp_path.glob('cvt_dense-app-*')) == [], 'uploads are gone'
