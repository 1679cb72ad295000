"""A page in headless Chromium, driven through a pipe by its DevTools protocol. Standard library
only.

The messages of the protocol are JSON, ended by a zero byte. Chromium reads them from its file 3
and writes them to its file 4.
"""
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
START = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"


def chromium():
    """The path of a Chromium, or None."""
    found = (shutil.which(name) for name in (os.environ.get("CHROMIUM") or "", *NAMES) if name)
    return next((path for path in found if path), None)


class Page:
    """One tab. `errors` collects exceptions that nobody caught, and errors in the console."""

    def __init__(self, read, write):
        self.read_end, self.write_end, self.buffer = read, write, b""
        self.number, self.session, self.answers, self.errors = 0, None, {}, []

    def call(self, method, seconds=120, **parameters):
        """The answer to one message."""
        self.number += 1
        number = self.number
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.write_end, data):]
        self.wait(lambda: number in self.answers, seconds, method)
        answer = self.answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def wait(self, done, seconds, what):
        end = time.monotonic() + seconds
        while not done():
            ready, _, _ = select.select([self.read_end], [], [], max(0, end - time.monotonic()))
            assert ready, f"Chromium did not answer within {seconds} s: {what}"
            data = os.read(self.read_end, 1 << 20)
            assert data, "Chromium has ended"
            self.buffer += data
            if b"\0" in data:
                *whole, self.buffer = self.buffer.split(b"\0")
                for message in whole:
                    self.take(json.loads(message))

    def take(self, message):
        if "id" in message:
            self.answers[message["id"]] = message
        elif message["method"] == "Runtime.exceptionThrown":
            details = message["params"]["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif message["method"] == "Runtime.consoleAPICalled" and message["params"]["type"] in ("error", "assert", "warning"):
            self.errors.append(str([a.get("value", a.get("description")) for a in message["params"]["args"]]))
        elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.errors.append(message["params"]["entry"]["text"])

    def open(self, address, width=1300, height=900, dark=False, reduced=False):
        """Goes to an address, as on a screen of this size."""
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce" if reduced else "no-preference"}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": n, "value": v} for n, v in features.items()])
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)

    def run(self, script, seconds=120):
        """The value of an expression in the page. A promise is waited for."""
        answer = self.call("Runtime.evaluate", seconds, expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression, seconds=120):
        """Waits until an expression is true, and returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(expression)):
            assert time.monotonic() < end, f"still not true after {seconds} s: {expression}"
            time.sleep(0.05)
        return value


@contextlib.contextmanager
def browser(path):
    """A Page of a new Chromium, which ends with the context. Its profile is thrown away."""
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    # Above 9, so that files 3 and 4 are free.
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_read, from_write)]
    for fd in (to_read, from_write):
        os.close(fd)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        command = [sys.executable, "-c", START, *map(str, theirs), path, *flags]
        process = subprocess.Popen(command, pass_fds=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in theirs:
            os.close(fd)
        page = Page(from_read, to_write)
        try:
            targets = page.call("Target.getTargets")["targetInfos"]
            target = next(t["targetId"] for t in targets if t["type"] == "page")
            page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                page.call(f"{domain}.enable")
            yield page
        finally:
            page.session = None
            with contextlib.suppress(AssertionError, OSError):
                page.call("Browser.close", seconds=5)
            process.terminate()
            process.wait(30)
            os.close(to_write)
            os.close(from_read)
