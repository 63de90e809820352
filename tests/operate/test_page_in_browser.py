"""The page of the operating app in a real browser: what it shows, what it does, and what it keeps to itself."""

import re
import shutil
import time

import pytest
from stand_in import KEPT, StandIn, row

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium on the path"),
]
expect = sync_api.expect

LIMIT = {"limit": "3 within 5 s", "allowed": 3}
REFUSED = re.compile(r"net::ERR_|status of 4\d\d|status of 503")


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
    page.set_default_timeout(10_000)
    expect.set_options(timeout=10_000)
    complaints, page.may_fail = [], False
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda line: (
            None
            if line.type not in ("error", "warning") or (page.may_fail and REFUSED.search(line.text))
            else complaints.append(line.text)
        ),
    )
    yield page
    page.close()
    assert complaints == []


@pytest.fixture
def shop():
    rows = (
        row("shop", kind="supervisor", strategy="one_for_one", **LIMIT),
        row("shop/feed", mailbox=3, handled=1200),
        row("shop/store", kind="supervisor", strategy="rest_for_one", front="shop/store/jobs", **LIMIT),
        row("shop/store/cache"),
        row("shop/store/jobs", mailbox=0, handled=7),
    )
    with StandIn(*rows, token="the-token-of-this-program") as stand:
        yield stand


def line(page, path):
    """The row of a node in the tree."""
    return page.locator("#tree tbody tr").filter(has=page.locator(f'td.c-node[title="{path}"]'))


def cells(page, path):
    return [text.strip() for text in line(page, path).locator("td").all_inner_texts()]


def test_a_failure_appears_everywhere_with_its_tag_and_its_directive(shop, page):
    """Table, timeline, events and header follow; the table is one for assistive techniques too."""
    page.goto(shop.url)
    grid = page.get_by_role("treegrid", name="Tree")
    expect(grid.get_by_role("row")).to_have_count(6)
    assert line(page, "shop/store/jobs").get_attribute("aria-level") == "3"
    expect(page.locator("#counts")).to_have_text("5 up")
    expect(page.locator("#connection")).to_contain_text("live")
    shop.fail("shop/store/jobs", ("ConnectionError", "the database is gone"), tag="db.gone")
    shop.rows["shop/store"]["restarts"] = 1
    expect(line(page, "shop/store/jobs")).to_contain_text("ConnectionError: the database is gone")
    expect(line(page, "shop/store/jobs")).to_contain_text("db.gone → Restart")
    assert cells(page, "shop/store/jobs")[2] == "2"
    assert cells(page, "shop/store")[3] == "1/3"
    lane = page.locator("#lanes li").filter(has_text="shop/store/jobs")
    expect(lane.locator("svg text")).to_have_text(["db.gone → Restart, #2 after 0.20 s"])
    expect(lane.get_by_role("img")).to_have_attribute("aria-label", re.compile("up since .*1 failure in"))
    expect(page.locator("#events tbody")).to_contain_text("failed: ConnectionError: the database is gone")
    shop.set("shop/feed", "restarting", due=time.time() + 50)
    shop.emit("BackingOff", "shop/feed", delay=60.0, until=0.0, attempt=1)
    expect(line(page, "shop/feed")).to_contain_text("restarting")
    assert re.fullmatch(r"(50|4\d) s", cells(page, "shop/feed")[4])
    expect(page.locator("#counts")).to_have_text("4 up1 restarting")
    page.locator("#zoom").get_by_text("All").click()
    expect(lane.locator("rect.failure")).to_have_count(1)


def test_the_status_is_fetched_at_most_once_a_second_and_only_after_events(shop, page):
    page.goto(shop.url)
    expect(page.locator("#counts")).to_have_text("5 up")
    page.wait_for_timeout(1500)
    before = shop.statuses
    page.wait_for_timeout(1500)
    assert shop.statuses == before
    for _ in range(20):
        shop.emit("Resumed", "shop/feed")
        page.wait_for_timeout(100)
    page.wait_for_timeout(1500)
    assert before + 2 <= shop.statuses <= before + 4


HOSTILE = (
    "<script>alert(1)</script>",
    '</script><img src=x onerror="alert(2)">',
    "'\"`&amp;${1}%2e?#",
    "x" * 3000,
    "שלום עולם \u202egnp.exe",
    "👩‍👩‍👧 🧨",
    "a\ttab\u0000\u001b[31m",
)


@pytest.mark.parametrize("width", [400, 1400])
def test_whatever_a_program_says_is_shown_as_text(page, width):
    """Names, failures, tags, reasons and tracebacks: in no place do they become markup, or make the page wider."""
    rows = [
        row("app", kind="supervisor"),
        *(row(f"app/{name.strip().replace('/', '|')}") for name in HOSTILE),
    ]
    with StandIn(*rows, token="t" * 20) as stand:
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(stand.url)
        for each, text in zip(rows[1:], HOSTILE, strict=True):
            stand.fail(each["path"], (text, text), tag=text)
        expect(page.locator("#tree tbody tr")).to_have_count(len(rows))
        for each, text in zip(rows[1:], HOSTILE, strict=True):
            here = page.locator("#tree tbody tr").nth(rows.index(each))
            assert here.locator(".name").evaluate("e => e.textContent") == each["path"][4:]
            expect(here.locator(".what")).to_have_text(f"{text}: {text}", use_inner_text=False)
            here.click()
            assert page.locator("#story-title").evaluate("e => e.textContent") == each["path"]
            expect(page.locator("#story-events li")).to_have_count(5)
            expect(page.locator("#why")).to_contain_text("because <b>of</b> a rule")
            page.locator("#story-events summary").click()
            expect(page.locator("#story-events pre")).to_contain_text(text, use_inner_text=False)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.locator("#story").evaluate("story => story.scrollWidth <= story.clientWidth")
            page.keyboard.press("Escape")
        assert page.locator("body script, body img, body b").count() == 0
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
    shop.set("shop/feed", "condemned")
    shop.emit("Stopped", "shop/feed")
    page.may_fail = True  # the program is not ready, which a browser notes
    expect(visible).to_have_count(2)
    expect(page.locator("#ready")).to_have_text("not ready: waits for shop/feed (it is condemned)")
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
    for number in range(150):
        shop.emit("Ready", "shop/feed", text=f"is ready {number}")
    shop.fail("shop/store/jobs", ("OSError", "no disk"))
    page.goto(shop.url)
    events = page.locator("#events tbody tr:visible")
    expect(page.locator("#events-shown")).to_have_text("155 events of 155")
    page.locator("#events-filter").fill("ready 14")
    expect(events).to_have_count(12)  # 14, 114, and 140 to 149
    page.locator("#events-filter").fill("")
    page.locator("#events-kinds").select_option("failures")
    expect(events).to_have_count(2)
    page.locator("#events-kinds").select_option("all")
    page.locator("#events-box").evaluate("box => { box.scrollTop = 500; }")
    shop.emit("Ready", "shop/feed", text="is ready at last")
    expect(page.locator("#newer")).to_have_text("↑ 1 newer")
    expect(events.first).not_to_contain_text("at last")
    page.locator("#newer").click()
    expect(events.first).to_contain_text("at last")
    page.locator("#events tbody button:visible").first.click()
    expect(page.locator("#story-title")).to_have_text("shop/feed")


def test_the_story_of_a_node(shop, page):
    """Its row, why it is as it is, its stack on request, and its own events, to which new ones come."""
    shop.fail("shop/store/jobs", ("OSError", "no disk"), tag="disk")
    page.goto(shop.url)
    line(page, "shop/store/jobs").click()
    story = page.get_by_role("complementary", name="shop/store/jobs")
    expect(story).to_contain_text("disk → Restart, by shop/store")
    expect(story).to_contain_text("0 waiting, 7 handled")
    expect(page.locator("#why")).to_have_text("shop/store/jobs is as it is because <b>of</b> a rule.")
    story.get_by_role("button", name="Show its stack now").click()
    expect(page.locator("#stack")).to_have_text("the stack of shop/store/jobs line 1 line 2")
    expect(page.locator("#story-events li")).to_have_count(5)
    page.locator("#story-events summary").click()
    expect(page.locator("#story-events pre")).to_contain_text("Traceback")
    shop.emit("Resumed", "shop/store/jobs")
    expect(page.locator("#story-events li")).to_have_count(6)
    expect(page.locator("#story-events pre")).to_be_visible()


def enter(page, token):
    page.get_by_role("button", name=re.compile("token", re.IGNORECASE)).click()
    page.get_by_role("textbox", name="Token").fill(token)
    page.keyboard.press("Enter")


def test_without_a_token_it_only_reads(shop, page):
    page.goto(shop.url)
    line(page, "shop/feed").click()
    expect(page.locator("#story")).to_be_visible()
    page.wait_for_timeout(300)
    expect(page.locator("#acts")).to_be_hidden()
    page.may_fail = True
    enter(page, "schlüssel")
    expect(page.locator("#notice")).to_contain_text("signs of ASCII only")
    enter(page, "another-token")
    expect(page.locator("#notice")).to_have_text("The program does not accept this token.")
    page.get_by_role("button", name="Restart …").click()
    expect(page.locator("#act-error")).to_have_text("The token is missing or wrong.")
    expect(page.locator("#act-do")).to_be_disabled()
    assert shop.acts == []


def test_an_act_shows_its_steps_asks_for_a_reason_and_is_done(shop, page):
    """The token is kept in memory alone: neither in storage nor in a cookie, and not after the page was loaded again."""
    page.goto(shop.url)
    enter(page, shop.token)
    line(page, "shop/store/jobs").click()
    page.get_by_role("button", name="Restart …").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("This takes 2 steps, in this order:")
    expect(page.locator("#act-steps li")).to_have_text(["stop shop/store/jobs", "start shop/store/jobs"])
    dialog.get_by_role("button", name="Restart").click()  # without a reason
    expect(dialog).to_be_visible()
    assert shop.acts == []
    dialog.get_by_label("Reason").fill("it hangs")
    dialog.get_by_label("Your name").fill("Ada")
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_have_text("restart of shop/store/jobs: done in 2 steps.")
    assert shop.acts == [("restart", "shop/store/jobs", "it hangs", "Ada")]
    expect(page.locator("#story-events")).to_contain_text("is being stopped: it hangs")
    assert page.evaluate("[document.cookie, localStorage.length, sessionStorage.length].join()") == ",0,0"
    assert shop.token not in page.content()
    page.may_fail = True
    line(page, "shop").click()
    page.get_by_role("button", name="Stop …").click()
    expect(page.locator("#act-error")).to_have_text("The root 'shop' cannot be changed while it runs.")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator("#story")).to_be_visible()
    page.reload()
    line(page, "shop/feed").click()
    expect(page.get_by_role("button", name="Enter token")).to_be_visible()
    expect(page.locator("#acts")).to_be_hidden()


def test_it_comes_back_when_the_program_does(page):
    """After a lost connection it goes on with what was missed; another run of the program is shown from its beginning."""
    rows = row("app", kind="supervisor"), row("app/a")
    with StandIn(*rows) as stand:
        stand.emit("Ready", "app/a")
        page.goto(stand.url)
        expect(page.locator("#events tbody tr:visible")).to_have_count(1)
    page.may_fail = True
    expect(page.locator("#connection")).to_contain_text("reconnecting")
    for _ in range(KEPT + 7):
        stand.emit("Resumed", "app/a")
    with stand:
        expect(page.locator("#connection")).to_contain_text("live", timeout=20_000)
        expect(page.locator("#connection")).to_contain_text("7 events missed")
        expect(page.locator("#events-shown")).to_have_text("the last 200 of 10,000")
    with StandIn(*rows, row("app/b"), port=stand.port) as other:
        other.emit("Ready", "app/b", text="is another")
        expect(page.locator("#events tbody tr:visible")).to_have_count(1, timeout=20_000)
        expect(page.locator("#events")).to_contain_text("is another")
        expect(page.locator("#notice")).to_contain_text("Another run")
        expect(line(page, "app/b")).to_be_visible()
        expect(page.locator("#connection")).not_to_contain_text("missed")


def test_a_thousand_nodes_and_a_thousand_events_a_second(page):
    """It stays at work: a click is served meanwhile, the last event appears, and what is drawn is bounded."""
    groups = [f"big/group {number}" for number in range(20)]
    leaves = [f"{group}/worker {number}" for group in groups for number in range(50)]
    rows = sorted(map(row, ["big", *groups, *leaves]), key=lambda each: each["path"])
    with StandIn(*rows) as stand:
        page.goto(stand.url)
        expect(page.locator("#shown")).to_have_text("1,021 nodes")
        for turn in range(30):
            for number in range(20):
                stand.fail(leaves[(turn * 20 + number) % 1000], ("OSError", f"number {turn * 20 + number}"))
            page.wait_for_timeout(100)
            if turn == 15:
                line(page, "big/group 0/worker 3").click()
                expect(page.locator("#story-title")).to_have_text("big/group 0/worker 3")
        stand.emit("Ready", leaves[0], text="the last one")
        expect(page.locator("#events tbody tr").first).to_contain_text("the last one")
        expect(line(page, leaves[599])).to_contain_text("OSError: number 599")
        assert page.locator("#events tbody tr").count() == 200
        assert page.locator("#lanes li").count() == 20
        expect(page.locator("#lanes-shown")).to_have_text("20 of 1,021 nodes: trouble first")
        expect(page.locator("#lanes")).to_contain_text("group 11/worker 49")
        page.close()
