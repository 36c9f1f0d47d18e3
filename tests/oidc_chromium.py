"""A real Chromium and the person before it, as $BROWSER runs it: `python tests/oidc_chromium.py CHROMIUM SUBJECT URL`."""

from __future__ import annotations

import sys

from playwright.sync_api import sync_playwright


def visit(chromium: str, subject: str, url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(15_000)
        page.goto(url)
        page.fill("input[name=sub]", subject)
        page.press("input[name=sub]", "Enter")
        page.wait_for_url("**/auth/oidc/callback?**")
        sys.stdout.write(page.inner_text("body") + "\n")
        page.click("button")
        page.wait_for_url("http://127.0.0.1:*/callback?**")
        sys.stdout.write(page.inner_text("body") + "\n")
        browser.close()


if __name__ == "__main__":
    visit(*sys.argv[1:])
