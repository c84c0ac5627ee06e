"""The page checks detect errors and accessibility violations."""

from playwright.sync_api import Browser

from tests.browser.page_checks import accessibility_faults, browser_errors

REFUSING = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"


def complaints(browser: Browser, html: str) -> list[str]:
    page = browser.new_page()
    found = browser_errors(page)
    page.set_content(html)
    page.wait_for_timeout(100)
    page.close()
    return found


def test_script_errors_are_reported(browser: Browser) -> None:
    (thrown,) = complaints(browser, "<script>throw new Error('torn')</script>")
    (logged,) = complaints(browser, "<script>console.error('worn')</script>")

    assert "torn" in thrown
    assert "worn" in logged
    assert complaints(browser, "<script>console.log('fine')</script>") == []


def test_violations_of_the_content_policy_are_reported(browser: Browser) -> None:
    (refused,) = complaints(browser, f"{REFUSING}<script>1</script>")

    assert "Content Security Policy" in refused


def test_requests_to_other_hosts_are_reported(browser: Browser) -> None:
    assert any("ERR_NAME_NOT_RESOLVED" in each for each in complaints(browser, "<img alt='' src='http://a.example/'>"))


def test_serious_accessibility_faults_are_reported(browser: Browser) -> None:
    page = browser.new_page()
    page.set_content("<html lang='en'><title>A</title><main><h1>A</h1><img src='data:,'><input></main></html>")
    faults = accessibility_faults(page)
    page.close()

    assert sorted(fault.split(" ")[1] for fault in faults) == ["image-alt", "label"]
