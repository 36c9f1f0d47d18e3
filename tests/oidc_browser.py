"""A browser and the person before it: opens the page, signs in at the provider, says yes, and goes wherever it is sent.

`python tests/oidc_browser.py SUBJECT URL`, as $BROWSER runs it. "SUBJECT-no": the person closes the page that asks.
"""

from __future__ import annotations

import html
import re
import sys
from urllib.parse import urljoin

import httpx


def visit(subject: str, page: str) -> None:
    with httpx.Client(trust_env=False, timeout=10) as client:
        to_provider = client.get(page)
        assert to_provider.status_code == 302, to_provider.text
        back = client.post(to_provider.headers["location"], data={"sub": subject.removesuffix("-no")})
        question = client.get(back.headers["location"])
        assert question.status_code == 200, question.text
        if subject.endswith("-no"):
            return
        found = re.search(r'action="([^"]+)"', question.text)
        assert found is not None
        form = urljoin(page, html.unescape(found[1]))
        yes = client.post(form, headers={"sec-fetch-site": "same-origin", "content-type": "application/x-www-form-urlencoded"})
        assert yes.status_code == 303, yes.text
        sys.stdout.write(yes.headers["location"] + "\n")
        if "--stop" not in sys.argv:
            assert client.get(yes.headers["location"]).status_code == 200


if __name__ == "__main__":
    visit(sys.argv[1], sys.argv[2])
