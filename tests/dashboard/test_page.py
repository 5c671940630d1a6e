"""The page in a real browser: what is seen, by whom, on what screen, with which keys."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from poolkit import AcquireTimeout, BreakerConfig, Budget, ConnectFailed, Pool
from poolkit.cluster import Cluster
from poolkit.dashboard import Dashboard, start
from poolkit.testing import FakeConnector
from tests.support.waiting import until

from .conftest import TOKEN, exhausted

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.timeout(90)  # a browser takes its time where many are at work
TIMEOUT = 15_000  # milliseconds


def _chromium(driver: Any) -> str | None:
    """A browser of this machine, or the one that playwright has been told to download."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    own = driver.chromium.executable_path
    return found or (own if os.path.exists(own) else None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as driver:
        program = _chromium(driver)
        if program is None:
            pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
        root = hasattr(os, "getuid") and os.getuid() == 0  # Chromium has no sandbox for root
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    with start(port=0, token=TOKEN, service="shop") as dashboard:
        yield dashboard


@pytest.fixture
def page(browser: Browser, dashboard: Dashboard, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page, opened; what the browser complains about fails the test. Parameters are those of a screen."""
    options = {"viewport": {"width": 1280, "height": 900}, **getattr(request, "param", {})}
    context = browser.new_context(**options)
    context.set_default_timeout(TIMEOUT)
    page = context.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda sent: asked.append(sent.url))
    page.goto(dashboard.address)
    yield page
    context.close()
    # that of an answer that a test provokes is the browser's own
    assert [text for text in complaints if "Failed to load resource" not in text] == []
    assert all(url.startswith(dashboard.address) for url in asked)


def card(page: Page, name: str) -> Any:
    return page.locator("article.card", has=page.get_by_role("heading", name=name, exact=True))


def overflow(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


SCREENS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True},
    "phone-dark": {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"},
}


@pytest.mark.parametrize(("name", "page"), SCREENS.items(), ids=SCREENS, indirect=["page"])
def test_it_shows_pools_holders_waiters_clusters_and_budgets_on_every_screen(
    name: str, page: Page, orders: Pool[Any], tmp_path: Path
) -> None:
    """Without scrolling sideways, and readable: the words stand out from the ground in light and dark."""
    budget = Budget(9, name="the-budget")
    with (
        Cluster(lambda node: FakeConnector(), ["replica-1.example.internal:5432", "replica-2"], name="replicas"),
        Pool(FakeConnector(), name="with-a-long-name-" * 4, budget=budget),
        exhausted(orders),
    ):
        orders_card = card(page, "orders-db")
        orders_card.get_by_text("2 of 2 in use, 0 idle, 1 waiting").wait_for()
        orders_card.get_by_text("too small: all 2 connections are in use").wait_for()
        assert "utilisation" in orders_card.locator("figcaption").first.inner_text()
        orders_card.get_by_role("button", name="Details of orders-db").click()
        leases = page.get_by_role("table", name="Leases", exact=True)
        leases.wait_for()
        assert leases.get_by_role("row").count() == 3
        assert "MainThread" in leases.inner_text()
        assert "conftest.py" in leases.inner_text()
        assert "patient" in page.get_by_role("table", name="Waiting callers").inner_text()
        page.get_by_text("Settings in effect").click()
        settings = page.get_by_role("table", name="Values and sources")
        assert "max_size\t2\tkeyword" in settings.inner_text()
        assert "replica-1.example.internal:5432" in page.get_by_role("table", name="replicas").inner_text()
        assert page.get_by_role("table", name="the-budget: 0 of 9 connections").count() == 1
        assert page.get_by_role("table", name="The last ones").get_by_text("orders-db: connection ready").count()
        assert overflow(page) <= 0
        assert page.evaluate(CONTRAST) == []
        page.screenshot(path=tmp_path / f"{name}.png", full_page=True)


def test_a_chart_has_axes_and_tells_the_value_under_the_pointer(page: Page, orders: Pool[Any]) -> None:
    figure = card(page, "orders-db").locator("figure").first
    figure.locator(".axis.upper", has_text="100%").wait_for()
    assert "ago" in figure.locator(".axis.from").inner_text()
    assert figure.locator(".axis.to").inner_text() == "now"
    figure.locator("svg").hover()
    figure.locator("figcaption", has_text=re.compile(r"utilisation .* at \d+:\d\d:\d\d")).wait_for()
    page.mouse.move(0, 0)
    figure.locator("figcaption", has_text="at most").wait_for()


CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const color = parse(getComputedStyle(one).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!text || !node.getClientRects().length || node.closest("svg") || node.disabled) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))].sort((p, q) => q - p);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(`${node.tagName}.${node.className}: ${node.textContent.slice(0, 30)}`);
  }
  return poor;
}"""
"""Texts whose contrast is below WCAG 2's 4.5 to 1 (its formula of relative luminance)."""


def test_it_is_used_with_the_keyboard_alone(page: Page, orders: Pool[Any]) -> None:
    """Skip link first, focus seen, details opened and left by keys, and the focus where one was."""
    card(page, "orders-db").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the pools"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    for _ in range(30):
        if page.evaluate("document.activeElement.ariaLabel") == "Details of orders-db":
            break
        page.keyboard.press("Tab")
    focused = "getComputedStyle(document.activeElement)"
    assert page.evaluate(f"{focused}.outlineStyle + ' ' + {focused}.outlineWidth") == "solid 3px"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "detail-title"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert not page.locator("#detail").is_visible()
    assert page.evaluate("document.activeElement.ariaLabel") == "Details of orders-db"
    orders.lease().close()
    page.get_by_text("0 of 2 in use, 1 idle, 0 waiting").wait_for()
    assert page.evaluate("document.activeElement.ariaLabel") == "Details of orders-db"  # also after an update


def test_it_can_be_read_aloud(page: Page, orders: Pool[Any]) -> None:
    """Landmarks, names of regions and fields, headers with scope, alerts that are announced, charts in words."""
    card(page, "orders-db").get_by_role("button").click()
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("main").count() == page.get_by_role("banner").count() == 1
    assert page.locator("h1").count() == 1
    for region in ("Alerts", "Live pools", "Events"):
        assert page.get_by_role("region", name=region).count() == 1, region
    assert page.locator("#alerts[aria-live=polite]").count() == 1
    assert page.get_by_role("status").count() >= 1
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("table:not(:has(caption))").count() == 0
    for label in ("Token", "Connections at most", "Show"):
        assert page.get_by_label(label).count() >= 1, label
    assert page.locator("svg:not([aria-hidden=true])").count() == 0
    assert page.locator("figure:not(:has(figcaption:not(:empty)))").count() == 0
    assert page.get_by_role("button", name="Details of orders-db", expanded=True).count() == 1


@pytest.mark.parametrize("page", [{"reduced_motion": "reduce"}], indirect=True)
def test_who_wants_no_motion_gets_none(page: Page) -> None:
    moving = (
        "[...document.querySelectorAll('*')].filter((n) => parseFloat(getComputedStyle(n).transitionDuration)).length"
    )
    page.get_by_text("live", exact=True).wait_for()
    assert page.evaluate(moving) == 0


def test_actions_need_the_token_and_a_yes(page: Page, orders: Pool[Any]) -> None:
    card(page, "orders-db").get_by_role("button").click()
    result = page.locator("#action-result")
    page.get_by_label("Connections at most").fill("5")
    page.get_by_role("button", name="Resize").click()
    result.get_by_text("an action needs the token").wait_for()
    assert orders.config.max_size == 2
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Resize").click()
    result.get_by_text("orders-db: max_size is 5").wait_for()
    assert orders.config.max_size == 5
    page.get_by_label("Connections at most").fill("0")
    page.get_by_role("button", name="Resize").click()  # the field itself refuses
    page.get_by_label("Connections at most").fill("")
    page.get_by_role("button", name="Resize").click()
    assert orders.config.max_size == 5
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Suspend").click()
    assert orders.stats().phase == "open"
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Suspend").click()
    result.get_by_text("orders-db: suspended").wait_for()
    assert orders.stats().phase == "suspended"
    card(page, "orders-db").get_by_text("suspended", exact=True).wait_for()
    page.get_by_role("button", name="Resume").click()
    result.get_by_text("orders-db: resumed").wait_for()
    assert TOKEN not in page.url


def test_names_and_errors_are_text_never_markup(page: Page) -> None:
    """The names of pools and threads and the text of errors cannot run a script in the reader's browser."""
    evil = "<img src=x onerror=\"document.title='owned'\">"
    connector = FakeConnector(in_caller=True)
    connector.fail("connect", lambda: ConnectionRefusedError(evil))
    with Pool(connector, name=evil, max_size=1, breaker=BreakerConfig(failure_threshold=1)) as pool:
        with pytest.raises((ConnectionRefusedError, ConnectFailed)):
            pool.acquire()
        card(page, evil).get_by_role("button").click()
        page.locator("#detail-tables").get_by_text("ConnectionRefusedError: <img src=x").wait_for()
        assert "open" in page.get_by_role("table", name="Endpoints").inner_text()
        assert page.locator("main img").count() == 0
        assert page.title().endswith("Pools of shop · poolkit")


def test_the_title_has_the_name_of_the_service_and_the_number_of_alerts(page: Page) -> None:
    page.get_by_role("heading", name="Pools of shop", exact=True).wait_for()
    assert page.title() == "Pools of shop · poolkit"
    with Pool(FakeConnector(), name="refusing", max_size=1) as pool, pool.lease():
        with pytest.raises(AcquireTimeout):
            pool.acquire(timeout=0)
        page.locator("#alerts a").first.wait_for()
        count = page.locator("#alerts li").count()
        assert page.title() == f"({count}) Pools of shop · poolkit"


def test_what_is_open_survives_a_reload_and_back_leaves_it(page: Page, orders: Pool[Any]) -> None:
    card(page, "orders-db").get_by_role("button").click()
    page.locator("#detail").get_by_text("Counters").click()
    page.get_by_label("Time range").select_option("last 5 minutes")
    page.wait_for_function("location.hash === '#/pool/orders-db?open=counters&range=300'")
    page.reload()
    page.get_by_role("table", name="Since the pool was created").wait_for()
    assert page.evaluate("document.activeElement.id") == "detail-title"
    assert page.get_by_label("Time range").input_value() == "300"
    page.get_by_role("link", name="Skip to the pools").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "pools"
    page.go_back()
    page.locator("#detail").wait_for(state="hidden")
    page.go_forward()
    page.locator("#detail").wait_for()
    page.get_by_role("button", name="Close").click()
    assert page.evaluate("location.hash") == "#/?range=300"


def test_an_address_of_a_pool_waits_for_it_and_tells_pools_of_one_name_apart(page: Page, dashboard: Dashboard) -> None:
    page.goto(f"{dashboard.address}/#/pool/a%2Fb%20%25")
    page.get_by_text("There is no pool a/b % now").wait_for()
    with Pool(FakeConnector(), name="a/b %"):
        page.get_by_role("heading", name="a/b % (Pool, process").wait_for()
        assert not page.locator("#missing").is_visible()
        with Pool(FakeConnector(), name="a/b %", max_size=77):
            card(page, "a/b %").nth(1).wait_for()
            card(page, "a/b %").filter(has_text="of 77").get_by_role("button").click()
            page.reload()
            page.locator("#detail-words").get_by_text("/77").wait_for()


def test_the_pool_in_trouble_is_first_and_its_alert_leads_to_it_with_live_values(page: Page, orders: Pool[Any]) -> None:
    with Pool(FakeConnector(), name="a-healthy-one"), Pool(FakeConnector(), name="zz-sick", max_size=1) as sick:
        page.locator("article.card").nth(1).wait_for()
        assert page.locator("article.card h3").first.inner_text() == "a-healthy-one"
        card(page, "a-healthy-one").get_by_role("button").focus()
        with sick.lease():
            for number in (1, 2):
                with pytest.raises(AcquireTimeout):
                    sick.acquire(timeout=0)
                page.locator("#alerts li").get_by_text(
                    f"{number} caller{'s' * (number > 1)} got no connection"
                ).wait_for()
        page.locator("article.card").first.get_by_role("heading", name="zz-sick").wait_for()
        assert page.evaluate("document.activeElement.ariaLabel") == "Details of a-healthy-one"
        assert card(page, "zz-sick").get_attribute("data-severity") == "critical"
        assert "since " in page.locator("#alerts li").first.inner_text()
        for _ in range(2):  # also if the pool is open already
            page.locator("#alerts").get_by_role("link", name="zz-sick").first.click()
            page.get_by_role("heading", name="zz-sick (Pool, process").wait_for()
            page.wait_for_function("document.activeElement.id === 'detail-title'")
            page.locator("h1").click()


def test_a_pool_that_is_closed_leaves_the_page_and_a_new_one_comes(page: Page) -> None:
    with Pool(FakeConnector(), name="comes-and-goes"):
        card(page, "comes-and-goes").get_by_role("button").click()
        page.get_by_role("heading", name="comes-and-goes (Pool, process").wait_for()
    card(page, "comes-and-goes").wait_for(state="detached")
    assert not page.locator("#detail").is_visible()


def test_it_pauses_says_when_nobody_answers_and_goes_on(page: Page, dashboard: Dashboard) -> None:
    page.get_by_text("live", exact=True).wait_for()
    page.get_by_role("button", name="Pause updates").click()
    with Pool(FakeConnector(), name="not-yet") as pool:
        assert page.get_by_role("button", name="Pause updates").get_attribute("aria-pressed") == "true"
        assert "paused at" in page.locator("#status").inner_text()
        page.get_by_role("button", name="Pause updates").click()
        card(page, "not-yet").wait_for()
        port = int(dashboard.address.rpartition(":")[2])
        dashboard.close()
        page.get_by_text("no answer; the page shows the state of").wait_for()
        with start(port=port):
            page.get_by_text("live", exact=True).wait_for()
            until(lambda: pool.stats() is not None)


@pytest.mark.parametrize("page", [{"java_script_enabled": False}], indirect=True)
def test_without_javascript_it_says_where_the_numbers_are(page: Page) -> None:
    assert page.get_by_role("link", name="api/state").count() == 1
