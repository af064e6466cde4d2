# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report's page in a browser: what it shows, how it is used, what it costs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, List

import pytest
from playwright.sync_api import expect

sys.path.insert(0, str(Path(__file__).parent))

import sample

from ansible_collections.gpufleet.inference.plugins.plugin_utils.report import page as pages

HEALTHY: dict = {
    "name": "gpu1",
    "level": "good",
    "problems": [],
    "driver": "580",
    "gpus": [],
    "topology": [],
    "rdma": [],
}


@pytest.fixture(scope="module")
def small() -> str:
    return sample.rendered(24)


def shown(page: Any, selector: str) -> List[str]:
    """The texts of the elements that can be seen."""
    seen = "(all) => [...document.querySelectorAll(all)].filter((one) => one.offsetParent).map((one) => one.innerText)"
    found: List[str] = page.evaluate(seen, selector)
    return found


def strips(page: Any) -> List[str]:
    return shown(page, ".strip b")


def rows(page: Any, section: str, column: int) -> List[str]:
    return shown(page, "#%s tbody tr > td:nth-child(%d)" % (section, column))


def test_what_the_page_shows(opened: Any, small: str) -> None:
    page = opened(small)
    assert page.locator("#about").inner_text() == "24 hosts, 184 GPUs · read 2026-11-30 10:46 UTC"
    tiles = [one.split("\n") for one in shown(page, ".tile")]
    assert [(one[0], one[1]) for one in tiles] == [
        *(("Hosts", "23 / 24"), ("GPUs fit", "183 / 184"), ("Memory in use", "43 %")),
        *(("Services ok", "23 / 23"), ("Drift", "1")),
    ]
    assert rows(page, "problems", 1) == ["no answer", "GPU", "drift", "slow", "note"]
    assert rows(page, "problems", 5)[1] == "reset the GPU"
    assert len(strips(page)) == 24 and page.locator(".cells i").count() == 184
    assert rows(page, "models", 1)[:3] == ["m70b:latest", "m32b:latest", "m70b:latest"]
    assert "OLLAMA_KEEP_ALIVE" in " ".join(rows(page, "services", 5))
    rollouts = page.locator("#rollouts summary")
    assert rollouts.count() == 3 and "9 changed, 15 as declared" in rollouts.first.inner_text()
    assert "off by 14 %" in rollouts.first.inner_text()
    gap = page.locator(".gaps li").first.get_attribute("aria-label")
    assert "predicted 38.0 s, measured" in str(gap)


def test_a_host_in_full(opened: Any, small: str) -> None:
    page = opened(small)
    page.get_by_role("button", name="gpu05.example: 8 GPUs").click()
    dialog = page.get_by_role("dialog", name="gpu05.example")
    assert dialog.get_by_text("remap_pending: remapping of memory rows is pending").is_visible()
    matrix = dialog.get_by_role("region", name="How near the GPUs are to each other")
    assert matrix.get_by_role("row").count() == 1 + 8 + 4
    assert matrix.get_by_role("row").nth(1).inner_text().split() == ["GPU", "0", "X", *["NV18"] * 7]
    assert dialog.get_by_role("region", name="Generations of").get_by_role("row").count() > 1
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_find_show_and_sort(opened: Any, small: str) -> None:
    page = opened(small)
    page.get_by_label("Find").fill("qwen3 gpu1")
    expect(page.locator("#count")).to_have_text(
        re.compile(" of ")
    )  # a function to wait for is against the page's policy
    found = strips(page)
    assert found and all(name.startswith("gpu1") for name in found)
    assert set(rows(page, "models", 1)) == {"qwen3-235b"} and set(rows(page, "services", 2)) == set(found)
    page.get_by_label("Find").fill("nothing at all")
    expect(page.locator("#count")).to_have_text(re.compile("^0 of"))
    assert page.get_by_text("No host matches.").is_visible() and strips(page) == []
    page.get_by_label("Find").fill("")
    expect(page.locator("#count")).to_have_text("24 hosts")
    page.locator("#show").select_option("problems")
    assert strips(page) == ["gpu05.example", "gpu08.example", "gpu11.example", "gpu14.example"]
    page.get_by_label("Sort").select_option("level")
    assert strips(page)[:2] == ["gpu05.example", "gpu11.example"]


def test_a_total_shows_its_hosts_and_then_all(opened: Any, small: str) -> None:
    page = opened(small)
    drift = page.get_by_role("button", name="Drift")
    drift.click()
    assert strips(page) == ["gpu14.example"] and drift.get_attribute("aria-pressed") == "true"
    drift.click()
    assert len(strips(page)) == 24 and drift.get_attribute("aria-pressed") == "false"


def test_a_table_sorts_by_its_columns_and_shows_all_on_request(opened: Any, small: str) -> None:
    page = opened(small)
    table = page.locator("#models")
    assert len(rows(page, "models", 1)) == 25
    table.get_by_role("button", name="Show all").click()
    assert len(rows(page, "models", 1)) > 25
    table.get_by_role("button", name="GiB").click()
    sizes = [float(one) for one in rows(page, "models", 6)]
    assert sizes == sorted(sizes, reverse=True)
    table.get_by_role("button", name="GiB").click()
    assert [float(one) for one in rows(page, "models", 6)] == sizes[::-1]
    assert table.get_by_role("columnheader", name="GiB").get_attribute("aria-sort") == "ascending"


def test_each_colour_tells_hosts_apart(opened: Any, small: str) -> None:
    page = opened(small)
    cells = "[...document.querySelectorAll('.cells i')].map((one) => getComputedStyle(one).backgroundColor)"
    found = {}
    for name in ("Memory", "Temperature", "Health"):
        page.get_by_label(name, exact=True).check(force=True)  # the label covers the button
        found[name] = page.evaluate(cells)
    assert [len(set(found[name])) > 20 for name in found] == [True, True, False]
    assert len(set(found["Health"])) == 3, "fit, slow, unfit"
    assert found["Memory"] != found["Temperature"]


def test_the_keyboard_reaches_everything(opened: Any, small: str) -> None:
    page = opened(small)
    focused = "document.activeElement.querySelector('b')?.textContent ?? document.activeElement.id"
    page.keyboard.press("/")
    assert page.evaluate(focused) == "find"
    page.get_by_label("Memory", exact=True).focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#map").get_attribute("class") == "heat"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "gpu01.example"
    wide = page.evaluate("getComputedStyle(document.getElementById('map')).gridTemplateColumns.split(' ').length")
    for key, expected in (
        ("ArrowRight", 2),
        ("ArrowDown", 2 + wide),
        ("ArrowLeft", 1 + wide),
        ("ArrowUp", 1),
        ("End", 24),
    ):
        page.keyboard.press(key)
        assert page.evaluate(focused) == "gpu%02d.example" % expected
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog", name="gpu24.example").is_visible()
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == "gpu24.example"
    page.keyboard.press("Tab")
    in_map = "document.getElementById('map').contains(document.activeElement)"
    assert not page.evaluate(in_map), "one stop for all hosts"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(focused) == "gpu24.example"


def test_every_control_has_a_name(opened: Any, small: str) -> None:
    page = opened(small)
    page.locator(".strip").nth(1).click()
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, select, dialog, section, table, [role=img], [role=region]')]
        .filter((one) => !(one.ariaLabel || one.getAttribute('aria-labelledby') || one.labels?.length || one.caption
            || one.tagName === 'BUTTON' && one.textContent.trim())).map((one) => one.outerHTML.slice(0, 99))"""
    )
    assert unnamed == []


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_width_makes_the_page_scroll_sideways(opened: Any, small: str, width: int) -> None:
    page = opened(small.replace("gpu07.example", "gpu07." + "a-very-long-name-" * 6 + "example"), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator(".strip").nth(6).click()
    dialog = page.locator("dialog").bounding_box()
    assert dialog and dialog["x"] >= 0 and dialog["x"] + dialog["width"] <= width


CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const light = (colour) => {
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((one) => one / 255)
      .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!/(, 0|\\/ 0)\\)$/.test(colour)) return colour;
    }
    return 'white';
  };
  return [...document.querySelectorAll('h1, p, td, th, button, label, summary span, .pill, .note, .title, small')]
    .filter((one) => one.offsetParent && one.innerText && !one.closest('.unseen, #bar')).map((one) => {
      const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), one.className + ' ' + one.innerText.slice(0, 30)];
    }).filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(opened: Any, small: str, scheme: str) -> None:
    """A contrast of 4.5 at least, as WCAG asks (level AA)."""
    page = opened(small, scheme=scheme)
    assert page.evaluate(CONTRAST) == []
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    for _turn in range(2 if scheme == "light" else 1):
        page.locator("#theme").click()
    assert page.evaluate(background) != before, "the button overrides the system"


EVIL = "</script><img src=x onerror=alert(1)>{{ 7 * 7 }}\u2028"


def test_texts_of_hosts_stay_texts(opened: Any) -> None:
    gpu = {"index": 0, "name": EVIL, "used": 1, "total": 2, "celsius": None, "slows_at": None, "busy": None}
    gpu.update(watts=None, watts_limit=None, health="unfit", why=[EVIL], units={EVIL: 1})
    last = dict.fromkeys(("ready", "latency", "unserved"))
    last.update(number=1, accepted=EVIL, verdict=EVIL, answer=EVIL, changes=[EVIL])
    service = {
        "unit": EVIL,
        "engine": EVIL,
        "verdict": EVIL,
        "line": EVIL,
        "state": EVIL,
        "why": [EVIL],
        "drift": [EVIL],
    }
    service.update(restart=False, version=EVIL, generations=[last], models=[{"name": EVIL, "held": {"0": 1}}])
    problem = {"kind": "gpu", "place": EVIL, "text": EVIL, "action": EVIL}
    host = {"name": EVIL, "level": "bad", "problems": [problem], "driver": EVIL, "gpus": [gpu, gpu]}
    host.update(topology=[[EVIL, "X"], ["X", EVIL]], rdma=[{"name": EVIL, "near": [EVIL, ""]}], services=[service])
    row = {"service": EVIL, "predicted": 1.0, "measured": None}
    own = {"name": EVIL, "status": EVIL, "why": EVIL, "rolled_back": True, "services": [row]}
    pool = {"name": EVIL, "hosts": 1, "minimum": 1, "least_ready": 1}
    rollout = {"run": EVIL, "verdict": EVIL, "reason": EVIL, "seconds": 1, "error": None, "as_declared": 0}
    rollout.update(hosts=[own], pools=[pool])
    page = opened(pages.render({"read_at": 0, "hosts": [host], "rollouts": [rollout]}))
    page.locator(".strip").click()
    assert page.locator("img, main script").count() == 0
    assert page.locator("#host-title").inner_text().startswith("</script><img src=x")


@pytest.mark.parametrize("hosts", [[], [dict(HEALTHY, services=[])]], ids=["no host", "a host without GPUs"])
def test_almost_nothing_to_show(opened: Any, hosts: Any) -> None:
    page = opened(pages.render({"read_at": 0, "hosts": hosts, "rollouts": []}))
    assert page.get_by_text("No rollout of this inventory has ended on this controller.").is_visible()
    assert len(strips(page)) == len(hosts)


def test_a_large_fleet_costs_little_more_to_filter_than_a_small_one(opened: Any, small: str) -> None:
    """500 hosts with 8 GPUs each: few elements for what they show, and a filter that fits into a few frames."""
    time = """() => { const find = document.getElementById('find'); let total = 0;
      for (const text of ['gpu1', 'qwen', '', 'zz', '']) {
        find.value = text; const start = performance.now();
        read(); document.body.offsetHeight; total += performance.now() - start;
      } return total / 5; }"""
    few, many = opened(small), opened(sample.rendered(500))
    assert many.evaluate("document.querySelectorAll('*').length") < 8000
    assert many.locator(".cells i").count() == 479 * 8
    # twenty times as many hosts; the fastest of a few turns, as the machine does other things, too
    costs = [min(page.evaluate(time) for _turn in range(3)) for page in (few, many)]
    assert costs[1] < 20 * costs[0], costs
