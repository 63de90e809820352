"""Makes docs/operating/page.png: the page of a small shop after its first minute, in which three of its nodes have failed."""

import shutil
import time
from pathlib import Path

import trio
from playwright.sync_api import sync_playwright
from served import Served

from supervise import Backoff, Child, Limit, Pool, Supervisor

PICTURE = Path(__file__).parents[2] / "docs" / "operating" / "page.png"


class DatabaseGone(Exception):
    tag = "db.gone"


async def work(inbox):
    async for message in inbox:
        message.reply()


FAILURES = {
    14: ("shop/store/jobs", DatabaseGone("the database does not answer")),
    31: ("shop/feed", ValueError("not a number: '1,5'")),
    38: ("shop/store/cache", MemoryError("no room for 4,096 entries")),
    50: ("shop/feed", ValueError("not a number: '2,5'")),
}
"""By the seconds since the tree began."""


def shop():
    limit = Limit(3, within=60)
    feed = Child(
        "feed", work, mailbox=64, backoff=Backoff(initial=4, factor=8, jitter=0), restart="transient"
    )
    jobs = Child("jobs", work, mailbox=256, backoff=Backoff(initial=2, jitter=0))
    cache = Child("cache", trio.sleep_forever)
    store = Supervisor("store", [jobs, cache], strategy="rest_for_one", front="jobs", limit=limit)
    sessions = Pool("sessions", Child("session", trio.sleep_forever, restart="temporary"))
    return Supervisor("shop", [feed, store, sessions], limit=limit)


def draw():
    with sync_playwright() as playwright, Served(shop()) as served:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 640}, color_scheme="light")
        began = time.monotonic()
        for seconds, (path, exc) in FAILURES.items():
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            served.fail(path, exc)
        page.goto(served.url)
        page.locator("#zoom").get_by_text("1 min").click()
        page.locator("#tree tbody tr").nth(3).click()
        page.locator("#story-events summary").first.wait_for()
        page.mouse.move(0, 0)
        page.wait_for_timeout(6000)
        page.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    draw()
