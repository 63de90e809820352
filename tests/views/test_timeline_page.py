"""What `docs/operating/timeline.md` shows is what the commands print, and its picture is what they draw."""

from tests import timeline_page


def test_the_page_shows_what_the_commands_print():
    """`python -m tests.timeline_page` writes both anew."""
    page = timeline_page.PAGE.read_text()
    text, picture = timeline_page.drawn(page)
    assert len(timeline_page.SHOWN.findall(page)) == 3
    assert text == page
    assert picture == timeline_page.PICTURE.read_text()
