"""The demo's page is looked at with the same browser and server as in `tests/browser`."""

from tests.browser.conftest import browser as browser
from tests.browser.conftest import demo as demo
