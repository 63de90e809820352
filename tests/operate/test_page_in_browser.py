"""The page of the operating app in a real browser: what it shows, what it does, and what it keeps to itself."""

import re
import shutil
import time

import pytest
import trio

from supervise import Backoff, Child, Decider, Limit, Stop, Supervisor
from supervise.operate.page import HEADERS

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("hypercorn", reason="needs trio-supervise[operate]")
from served import Served  # noqa: E402 - it imports what may be missing

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium on the path"),
]
expect = sync_api.expect

TOKEN = "the-token-of-this-program"
MANY = Limit(100, within=60)
REFUSED = re.compile(r"net::ERR_|status of 4\d\d")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page whose console must stay without errors, except those of requests that the test lets fail."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    complaints, page.may_fail = [], False
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def note(line):
        if line.type in ("error", "warning") and not (page.may_fail and REFUSED.search(line.text)):
            complaints.append(line.text)

    page.on("console", note)
    yield page
    page.close()
    assert complaints == []


async def work(inbox):
    async for message in inbox:
        message.reply()


def leaf(name, **options):
    return Child(name, trio.sleep_forever, **options)


class Gone(Exception):
    tag = "db.gone"


@pytest.fixture
def shop():
    feed = leaf("feed", backoff=Backoff(initial=50, maximum=50, jitter=0), decider=Decider({KeyError: Stop}))
    store = Supervisor(
        "store",
        [leaf("cache"), Child("jobs", work, mailbox=16)],
        strategy="rest_for_one",
        front="jobs",
        limit=MANY,
    )
    with Served(Supervisor("shop", [feed, store], limit=MANY), token=TOKEN) as served:
        yield served


def line(page, path):
    """The row of a node in the tree."""
    return page.locator("#tree tbody tr").filter(has=page.locator(f'td.c-node[title="{path}"]'))


def cells(page, path):
    return [text.strip() for text in line(page, path).locator("td").all_inner_texts()]


def test_a_failure_appears_everywhere_with_its_tag_and_its_directive(shop, page):
    """Table, timeline, events and header follow; the table is one for assistive techniques too."""
    assert (
        HEADERS.items()
        <= {name.title(): value for name, value in page.goto(shop.url).headers.items()}.items()
    )
    grid = page.get_by_role("treegrid", name="Tree")
    expect(grid.get_by_role("row")).to_have_count(6)
    assert line(page, "shop/store/jobs").get_attribute("aria-level") == "3"
    expect(page.locator("#counts")).to_have_text("5 up")
    expect(page.locator("#connection")).to_contain_text("live")
    shop.fail("shop/store/jobs", Gone("the database is gone"))
    expect(line(page, "shop/store/jobs")).to_contain_text("Gone: the database is gone")
    expect(line(page, "shop/store/jobs")).to_contain_text("db.gone → Restart")
    assert cells(page, "shop/store/jobs")[2] == "2"
    assert cells(page, "shop/store")[3] == "1/100"
    lane = page.locator("#lanes li").filter(has_text="shop/store/jobs")
    expect(lane.locator("text.failure")).to_have_text(
        re.compile(r"db\.gone → Restart, #2 after (< 1|\d+) ms")
    )
    expect(lane.get_by_role("img")).to_have_attribute("aria-label", re.compile("up since .*1 failure in"))
    expect(page.locator("#events tbody")).to_contain_text("failed: Gone: the database is gone")
    shop.fail("shop/feed", OSError("no network"))
    expect(line(page, "shop/feed")).to_contain_text("restarting")
    assert re.fullmatch(r"(50|4\d) s", cells(page, "shop/feed")[4])
    expect(page.locator("#counts")).to_have_text("4 up1 restarting")
    page.locator("#zoom").get_by_text("All").click()
    expect(lane.locator("rect.failure")).to_have_count(1)


def test_the_timeline_of_a_young_program_has_no_empty_past(shop, page):
    """It shows ten minutes at most, of a younger program less; its bars would have some pixels in ten minutes."""
    page.goto(shop.url)
    expect(page.locator("#counts")).to_have_text("5 up")
    lane = page.locator("#lanes li").filter(has_text="shop/store/jobs").get_by_role("img")
    begins = "box => box.querySelector('rect')?.getBBox().x < 0.9 * box.clientWidth"
    page.wait_for_function(begins, arg=lane.element_handle(), timeout=60_000)


def test_the_status_is_fetched_at_most_once_a_second_and_only_after_events(shop, page):
    asked = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/status") else None)
    page.goto(shop.url)
    expect(page.locator("#counts")).to_have_text("5 up")
    page.wait_for_timeout(3000)
    before, began = len(asked), time.monotonic()
    page.wait_for_timeout(1500)
    assert len(asked) == before
    for _ in range(20):
        shop.fail("shop/store/jobs", Gone())
        page.wait_for_timeout(100)
    page.wait_for_timeout(1500)
    assert before + 2 <= len(asked) <= before + time.monotonic() - began


HOSTILE = (
    "<script>alert(1)</script>",
    '</script><img src=x onerror="alert(2)">',
    "'\"`&amp;${1}%2e?#",
    "x" * 3000,
    "שלום עולם \u202egnp.exe",
    "👩‍👩‍👧 🧨",
    "a\ttab\u001b[31m",
)


@pytest.mark.parametrize("width", [400, 1400])
def test_whatever_a_program_says_is_shown_as_text(page, width):
    """Names, failures, tags, reasons and tracebacks: in no place do they become markup, or make the page wider."""
    names = [name.replace("/", "|") for name in HOSTILE]
    spec = Supervisor("app", [leaf(name) for name in names], limit=MANY)
    with Served(spec, token=TOKEN) as served:
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(served.url)
        enter(page, TOKEN)
        for name, text in zip(names, HOSTILE, strict=True):
            exc = type(name, (Exception,), {"tag": text})(text)
            served.fail(f"app/{name}", exc)
        rows = page.locator("#tree tbody tr")
        expect(rows).to_have_count(1 + len(names))
        for number, name in enumerate(names, 1):
            here = rows.nth(number)
            assert here.locator(".name").evaluate("e => e.textContent") == name
            expect(here.locator(".what")).to_contain_text(name[:10])
            here.click()
            assert page.locator("#story-title").evaluate("e => e.textContent") == f"app/{name}"
            expect(page.locator("#why")).to_contain_text("incarnation 2")
            page.locator("#story-events summary").click()
            expect(page.locator("#story-events pre")).to_contain_text(name[:10], use_inner_text=False)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            parts = page.locator("#story, #story h2, #story dd, #why").all()
            assert all(part.evaluate("part => part.scrollWidth <= part.clientWidth") for part in parts)
            page.keyboard.press("Escape")
        assert page.locator("body script, body img").count() == 0
        page.close()


def test_a_name_that_is_not_utf_8_has_its_story(page):
    """That of a file may be so, and no address can have it as it is."""
    with Served(Supervisor("app", [leaf("\udcff")], limit=MANY), token=TOKEN) as served:
        page.goto(served.url)
        page.locator("#tree tbody tr").nth(1).click()
        expect(page.locator("#why")).to_contain_text(r"app/\udcff is up")
        page.close()


def test_filter_only_trouble_and_keys(shop, page):
    """What is filtered out is hidden, its ancestors stay; arrows, Enter and Escape do the rest."""
    page.goto(shop.url)
    visible = page.locator("#tree tbody tr:visible")
    expect(visible).to_have_count(5)
    page.keyboard.press("/")
    page.keyboard.type("JOBS")
    expect(visible).to_have_count(3)
    expect(page.locator("#shown")).to_have_text("1 of 5 nodes")
    expect(page.locator("#lanes li")).to_have_count(1)
    page.locator("#filter").fill("")
    page.locator("#filter").blur()
    page.keyboard.press("!")
    expect(page.locator("#no-rows")).to_be_visible()
    shop.fail("shop/feed", KeyError("key"))
    expect(visible).to_have_count(2)
    expect(page.locator("#ready")).to_contain_text("not ready: waits for shop/feed")
    page.keyboard.press("!")
    expect(visible).to_have_count(5)
    line(page, "shop").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    expect(visible).to_have_count(3)
    expect(line(page, "shop/store")).to_have_attribute("aria-expanded", "false")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#story-title")).to_have_text("shop/store/cache")
    page.keyboard.press("Escape")
    expect(page.locator("#story")).to_be_hidden()
    expect(line(page, "shop/store/cache")).to_be_focused()


def test_events_are_filtered_and_the_place_of_a_reader_is_kept(shop, page):
    for number in range(30):
        shop.fail("shop/store/jobs", OSError(f"number {number}."))
        shop.do(shop.tree["shop/store/jobs"].ready)
    page.goto(shop.url)
    events = page.locator("#events tbody tr:visible")
    expect(events.first).to_contain_text("is ready again")
    page.locator("#events-filter").fill("failed: number 17.")
    expect(events).to_have_count(1)
    page.locator("#events-filter").fill("")
    page.locator("#events-kinds").select_option("failures")
    expect(events).to_have_count(60)
    page.locator("#events-kinds").select_option("all")
    page.locator("#events-box").evaluate("box => { box.scrollTop = 500; }")
    shop.fail("shop/store/cache", OSError("at last"))
    expect(page.locator("#newer")).to_have_text(re.compile(r"↑ \d+ newer"))
    expect(events.first).to_contain_text("shop/store/jobs")
    page.locator("#newer").click()
    expect(events.first).to_contain_text("is ready again")
    expect(page.locator("#events")).to_contain_text("at last")
    page.locator("#events tbody button:visible", has_text="cache").first.click()
    expect(page.locator("#story-title")).to_have_text("shop/store/cache")


def enter(page, token):
    page.get_by_role("button", name=re.compile("token", re.IGNORECASE)).click()
    page.get_by_role("textbox", name="Token").fill(token)
    page.keyboard.press("Enter")


def test_the_story_of_a_node(shop, page):
    """Its row, why it is as it is, and its events as they come; its stack and tracebacks only with the token, as on every port."""
    shop.fail("shop/store/jobs", Gone("no disk"))
    page.goto(shop.url)
    line(page, "shop/store/jobs").click()
    story = page.get_by_role("complementary", name="shop/store/jobs")
    expect(story).to_contain_text("db.gone → Restart, by shop/store")
    expect(story).to_contain_text("0 waiting, 0 handled")
    expect(page.locator("#why")).to_contain_text(
        "incarnation 1 failed: Gone: no disk, with the tag 'db.gone'."
    )
    page.may_fail = True
    story.get_by_role("button", name="Show its stack now").click()
    expect(page.locator("#stack")).to_contain_text("only to those who have the program’s token")
    page.locator("#story-events summary").click()
    expect(page.locator("#story-events pre")).to_contain_text("only to those who have")
    enter(page, TOKEN)
    story.get_by_role("button", name="Show its stack now").click()
    expect(page.locator("#stack")).to_contain_text("async for message in inbox")
    page.locator("#story-events summary").click()
    page.locator("#story-events summary").click()
    expect(page.locator("#story-events pre")).to_contain_text("Gone: no disk")
    before = page.locator("#story-events li").count()
    shop.fail("shop/store/jobs", Gone("again"))
    expect(page.locator("#story-events")).to_contain_text("failed: Gone: again")
    assert page.locator("#story-events li").count() > before
    expect(page.locator("#story-events pre:visible")).to_contain_text("Gone: no disk")


def test_without_a_token_it_only_reads(shop, page):
    page.goto(shop.url)
    line(page, "shop/feed").click()
    expect(page.locator("#why")).to_contain_text("It has not failed")
    expect(page.locator("#acts")).to_be_hidden()
    page.may_fail = True
    enter(page, "schlüssel")
    expect(page.locator("#notice")).to_contain_text("signs of ASCII only")
    enter(page, "another-token")
    expect(page.locator("#notice")).to_have_text("The program does not accept this token.")
    page.get_by_role("button", name="Restart …").click()
    expect(page.locator("#act-error")).to_contain_text("the right token")
    expect(page.locator("#act-do")).to_be_disabled()


def test_an_act_shows_its_steps_asks_for_a_reason_and_is_done(shop, page):
    """The token is kept in memory alone: neither in storage nor in a cookie, and not after the page was loaded again."""
    page.goto(shop.url)
    enter(page, TOKEN)
    line(page, "shop/store/cache").click()
    page.get_by_role("button", name="Restart …").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("This takes 4 steps, in this order:")
    expect(page.locator("#act-steps li")).to_have_text(
        ["stop shop/store/jobs", "stop shop/store/cache", "start shop/store/cache", "start shop/store/jobs"]
    )
    dialog.get_by_role("button", name="Restart").click()  # without a reason
    page.wait_for_timeout(200)
    expect(dialog).to_be_visible()
    assert cells(page, "shop/store/cache")[2] == "1"
    dialog.get_by_label("Reason").fill("it hangs")
    dialog.get_by_label("Your name").fill("Ada")
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_have_text("restart of shop/store/cache: done in 4 steps.")
    expect(page.locator("#story-events")).to_contain_text("Ada: it hangs")
    expect(line(page, "shop/store/jobs").locator(".c-incarnation")).to_have_text("2")
    assert page.evaluate("[document.cookie, localStorage.length, sessionStorage.length].join()") == ",0,0"
    assert TOKEN not in page.content()
    page.may_fail = True
    refusal = {"error": "'shop' is stopping"}
    page.route("**/restart/shop?dry_run=1", lambda route: route.fulfill(status=409, json=refusal))
    line(page, "shop").click()
    page.get_by_role("button", name="Restart …").click()
    expect(page.locator("#act-error")).to_contain_text("'shop' is stopping")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator("#story")).to_be_visible()
    page.reload()
    line(page, "shop/feed").click()
    expect(page.get_by_role("button", name="Enter token")).to_be_visible()
    expect(page.locator("#acts")).to_be_hidden()


def test_it_comes_back_when_the_program_does(page):
    """After a lost connection it goes on with what was missed; another run of the program is shown from its beginning."""
    spec = Supervisor("app", [leaf("a")], limit=MANY)
    with Served(spec, kept=20) as served:
        page.goto(served.url)
        expect(page.locator("#events-shown")).to_have_text("4 events of 4")
        page.may_fail = True
        with served.away():
            expect(page.locator("#connection")).to_contain_text("reconnecting")
            for _ in range(6):
                served.fail("app/a", Gone())
                served.do(served.tree["app/a"].ready)
        expect(page.locator("#connection")).to_contain_text("live", timeout=60_000)
        expect(page.locator("#connection")).to_contain_text(re.compile(r"\d events missed"))
        expect(page.locator("#events-shown")).to_have_text("24 events of 24")
        expect(line(page, "app/a").locator(".c-incarnation")).to_have_text("7")
    with Served(Supervisor("app", [leaf("a"), leaf("b")]), port=served.port):
        expect(line(page, "app/b")).to_be_visible(timeout=60_000)
        expect(page.locator("#events-shown")).to_have_text("6 events of 6")
        expect(page.locator("#notice")).to_contain_text("Another run")
        expect(page.locator("#connection")).not_to_contain_text("missed")
        page.close()


def test_a_thousand_nodes_and_a_thousand_events_a_second(page):
    """It stays at work: a click is served meanwhile, the last failure appears, and what is drawn is bounded."""
    groups = [
        Supervisor(
            f"group {number}", [leaf(f"worker {each}") for each in range(50)], limit=Limit(10_000, within=60)
        )
        for number in range(20)
    ]
    leaves = [f"big/group {number}/worker {each}" for number in range(20) for each in range(50)]
    with Served(Supervisor("big", groups)) as served:
        page.goto(served.url)
        expect(page.locator("#shown")).to_have_text("1,021 nodes")
        for turn in range(30):
            for number in range(turn * 20, turn * 20 + 20):
                served.fail(leaves[number], OSError(f"number {number}"))
            page.wait_for_timeout(100)
            if turn == 15:
                line(page, "big/group 0/worker 3").click()
                expect(page.locator("#story-title")).to_have_text("big/group 0/worker 3")
        expect(line(page, leaves[599])).to_contain_text("OSError: number 599")
        expect(page.locator("#events tbody")).to_contain_text("failed: OSError: number 599")
        assert page.locator("#events tbody tr").count() == 200
        assert page.locator("#lanes li").count() == 20
        expect(page.locator("#lanes-shown")).to_have_text("20 of 1,021 nodes: trouble first")
        expect(page.locator("#lanes")).to_contain_text("group 11/worker 49")
        page.close()
