"""Makes docs/page.png: the page of a small shop, in which two nodes have failed."""

import shutil
import time
from pathlib import Path

from playwright.sync_api import sync_playwright
from stand_in import StandIn, row

PICTURE = Path(__file__).parents[2] / "docs" / "page.png"


def shop(now):
    limit = {"limit": "3 within 60 s", "allowed": 3}
    stand = StandIn(
        row("shop", kind="supervisor", strategy="one_for_one", **limit),
        row("shop/feed", mailbox=3, handled=12_345),
        row("shop/store", kind="supervisor", strategy="rest_for_one", front="shop/store/jobs", **limit),
        row("shop/store/cache"),
        row("shop/store/jobs", mailbox=17, handled=99_182),
        row("shop/sessions", kind="pool"),
    )
    for path, each in stand.rows.items():
        stand.emit("Starting", path, text="starts", at=now - 570)
        stand.emit("Ready", path, text="is ready", at=now - 569)
        each["since"] = each["ready_at"] = now - 569
    stand.fail("shop/store/jobs", ("ConnectionError", "the database does not answer"), "db", at=now - 380)
    stand.fail("shop/store/jobs", ("TimeoutError", "no answer within 5 s"), "db.slow", at=now - 160)
    stand.fail("shop/feed", ("ValueError", "not a number: '1,5'"), at=now - 40)
    stand.emit(
        "BackingOff",
        "shop/feed",
        text="waiting 30.00 s before the next start",
        at=now - 10,
        delay=30.0,
        until=0.0,
    )
    stand.set("shop/feed", "restarting", since=now - 10, due=now + 20)
    stand.rows["shop"]["restarts"] = 1
    return stand


def draw():
    with sync_playwright() as playwright, shop(time.time()) as stand:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 640}, color_scheme="light")
        page.goto(stand.url)
        page.locator("#tree tbody tr").nth(4).click()
        page.locator("#story-events summary").first.wait_for()
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)
        page.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    draw()
