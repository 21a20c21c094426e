"""The report in a real browser: Chromium without a screen, where the system has one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

from tests.tools.conftest import HOSTILE, HOSTILE_FILE

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chromium-headless-shell"))), None)
WIDTHS = (1280, 390)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed, so that no page is looked at")

_OPTIONS = "--headless --no-sandbox --no-zygote --disable-gpu --disable-dev-shm-usage --enable-logging=stderr"

_PAGE = """<script>
addEventListener('load', () => {
  const pictures = [...document.images], text = document.body.innerText;
  const charts = [...document.querySelectorAll('svg.chart')], long = c => c.innerHTML.length;
  const chart = charts.reduce((a, b) => long(b) > long(a) ? b : a);
  const button = chart.parentElement.querySelector('button');
  const drawn = () => [...chart.querySelectorAll('polyline, .x, .y')].map(
    e => e.getAttribute('points') ?? [e.getAttribute('class'), Number(e.dataset.at), Number(e.textContent)]);
  const mouse = (kind, part) => {
    const box = chart.getBoundingClientRect(), [left, right] = chart.dataset.place.split(' ').map(Number);
    const x = box.left + (left + part * (right - left)) / chart.viewBox.baseVal.width * box.width;
    chart.dispatchEvent(new PointerEvent(kind, {clientX: x, clientY: box.top + 20, pointerType: 'mouse'}));
  };
  const key = name => chart.dispatchEvent(new KeyboardEvent('keydown', {key: name}));
  const told = () => chart.parentElement.querySelector('.read').textContent;
  const whole = drawn();
  mouse('pointermove', 0.5);
  const hovered = told();
  mouse('pointerdown', 0.25); mouse('pointermove', 0.5); mouse('pointerup', 0.75);
  const zoomed = drawn(), offered = !button.hidden;
  mouse('dblclick', 0.5);
  const back = drawn();
  key('+');
  const nearer = drawn();
  button.click();
  parent.document.getElementById('found').append(JSON.stringify({
    width: innerWidth, wide: document.documentElement.scrollWidth, pictures: pictures.length, text,
    broken: pictures.filter(p => !p.naturalWidth).length, scripts: document.scripts.length,
    axes: chart.dataset.axes.split(' ').map(Number), whole, hovered, zoomed, offered, back, nearer, last: drawn(),
    hidden: button.hidden,
  }) + '\\n');
});
</script></body>"""


@pytest.fixture(scope="module")
def seen(hostile, tmp_path_factory):
    """What a browser says of the report at each width, and what stands in its console."""
    page = hostile.read_text("utf-8").replace(' loading="lazy"', "").replace("</body>", _PAGE)
    shown = html.escape(page)
    frames = "".join(f'<iframe srcdoc="{shown}" width="{w}" height="800" frameborder="0"></iframe>' for w in WIDTHS)
    file = tmp_path_factory.mktemp("browser") / "frames.html"
    file.write_text(f'<!doctype html><meta charset="utf-8"><pre id="found"></pre>{frames}', "utf-8")
    command = [BROWSER, *_OPTIONS.split(), "--window-size=1800,1000", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    lines = html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)[1]).splitlines()
    found = {one["width"]: one for one in map(json.loads, lines)}
    return found, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_console_is_empty_and_every_width_is_seen(seen):
    found, console = seen
    assert not console
    assert sorted(found) == sorted(WIDTHS)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_picture_is_loaded_and_nothing_is_wider_than_the_window(seen, width):
    one = seen[0][width]
    assert one["pictures"] == 5
    assert not one["broken"]
    assert one["wide"] <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_hostile_names_are_read_as_text(seen, width):
    one = seen[0][width]
    assert HOSTILE in one["text"]
    assert HOSTILE_FILE in one["text"]
    assert one["scripts"] == 2  # the page's own and that which looks


@pytest.mark.parametrize("width", WIDTHS)
def test_a_dragged_range_is_drawn_larger_until_it_is_given_back(seen, width):
    one = seen[0][width]
    assert re.search(r" at 0\.5", one["hovered"])
    assert one["offered"]
    assert one["zoomed"] != one["whole"]
    low, high = one["axes"][:2]
    marks = [mark for mark in one["zoomed"] if mark[0] == "x"]
    assert len(marks) > 2
    for _, at, shown in marks:
        assert shown == pytest.approx(low + (high - low) / 4 + (at - low) / 2, abs=0.005)
    for points in one["zoomed"]:
        if isinstance(points, str) and points:
            across = [float(point.split(",")[0]) for point in points.split(" ")]
            assert min(across) >= 73.9
            assert max(across) <= 618.1
    assert one["back"] == one["whole"]
    assert one["nearer"] == one["zoomed"]  # the key zooms around the middle
    assert one["last"] == one["whole"]
    assert one["hidden"]
