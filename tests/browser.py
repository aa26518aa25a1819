"""Pages in a headless Chromium (Debian: chromium), driven by Playwright: what they ask for, and what goes wrong in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROGRAM = "/usr/bin/chromium"
# Of a container's root: there Chromium's own sandbox can't be made.
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage"]
HERE = ("file:", "data:", "blob:")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Give a browser that knows nothing and nobody."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass(kw_only=True)
class Heard:
    """What a page's console and errors said, what it asked for, and dialogs that it opened."""

    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    @property
    def elsewhere(self) -> list[str]:
        """What it asked of other places than files."""
        return [url for url in self.asked if not url.startswith(HERE)]


@contextmanager
def opened(
    browser: Browser, file: Path, *, width: int = 1280, height: int = 900, dark: bool = False, before: str = ""
) -> Iterator[tuple[Page, Heard]]:
    """Give a page that was opened from a file, and what is heard of it; at the end nothing must have gone wrong in it, nor
    been asked of any other place. The script `before` runs first."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        has_touch=width < 600,
        is_mobile=width < 600,
    )
    try:
        context.set_default_timeout(10_000)
        page, heard = context.new_page(), Heard()
        page.on("console", lambda message: heard.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: heard.said.append(f"error: {error}"))
        page.on("request", lambda request: heard.asked.append(request.url))
        page.on("requestfailed", lambda request: heard.said.append(f"not loaded: {request.url}"))
        page.on("dialog", lambda dialog: (heard.dialogs.append(dialog.message), dialog.dismiss()))
        if before:
            page.add_init_script(before)
        page.goto(file.absolute().as_uri())
        yield page, heard
        assert (heard.said, heard.elsewhere, heard.dialogs) == ([], [], [])
    finally:
        context.close()
