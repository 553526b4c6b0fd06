#!/usr/bin/env python3
"""The page at / in headless Chromium: chats, stops a reply, makes it again, opens the graphs.

    tests/server/page_test.py [FOLDER]      screenshots go to FOLDER
"""
# SPDX-License-Identifier: Apache-2.0
import base64
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import harness
from harness import Server

SKIPPED = 77


class Browser:
    """Chromium over its debugging pipe: messages of JSON that end with a NUL."""

    def __init__(self, program, profile):
        read_commands, self.commands = os.pipe()
        self.answers, write_answers = os.pipe()
        # Chromium reads descriptor 3 and writes 4.
        script = f'exec 3<&{read_commands} 4>&{write_answers}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "chromium", program, "--headless=new", "--no-sandbox",
             "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe", "--hide-scrollbars",
             "--no-first-run", f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(read_commands, write_answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True)
        os.close(read_commands)
        os.close(write_answers)
        self.held, self.last_id, self.session = b"", 0, None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.send("Page.enable")

    def send(self, method, **params):
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.held:
                part = os.read(self.answers, 1 << 16)
                if not part:
                    raise RuntimeError("Chromium has ended")
                self.held += part
            data, self.held = self.held.split(b"\0", 1)
            answer = json.loads(data)
            if answer.get("id") != self.last_id:
                continue
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            return answer["result"]

    def run(self, script):
        result = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, script, seconds=30):
        limit = time.monotonic() + seconds
        while not self.run(script):
            if time.monotonic() > limit:
                raise RuntimeError(f"never: {script}; status: {self.run('status_text()')}")
            time.sleep(0.05)

    def key(self, name, text=""):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name, text=text,
                      windowsVirtualKeyCode={"Enter": 13, "Escape": 27, "ArrowRight": 39}.get(name, 0))

    def look(self, scheme, width, height, mobile=False):
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=mobile)

    def screenshot(self, path):
        data = self.send("Page.captureScreenshot", format="png")["data"]
        pathlib.Path(path).write_bytes(base64.b64decode(data))

    def close(self):
        self.process.terminate()
        self.process.wait()
        # Its helpers write to the profile, which is about to be removed, for a moment longer.
        limit = time.monotonic() + 10
        try:
            while time.monotonic() < limit:
                os.killpg(self.process.pid, signal.SIGKILL)
                time.sleep(0.05)
        except ProcessLookupError:
            pass


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def drive(browser, server, folder):
    browser.look("light", 1000, 720)
    browser.send("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
    browser.wait("document.readyState === 'complete' && $('model').textContent.startsWith('base')")
    browser.run("window.status_text = () => $('status').textContent")
    browser.run("window.texts = () => [...document.querySelectorAll('.message.assistant')].map(m => m.textContent)")
    # Nothing came from elsewhere.
    foreign = browser.run("performance.getEntriesByType('resource').map(r => r.name)"
                          f".filter(n => !n.startsWith('http://127.0.0.1:{server.port}/') && !n.startsWith('data:'))")
    check(foreign == [], f"resources from outside: {foreign}")
    # A chat, by keyboard.
    browser.run("$('max_tokens').value = 40; $('seed').value = 3; $('input').focus()")
    browser.send("Input.insertText", text="the quick brown fox")
    browser.key("Enter", "\r")
    browser.wait("running === null && status_text().includes('40 tokens')")
    first = browser.run("texts()")
    check(len(first) == 1 and len(first[0]) > 20, f"no reply: {first}")
    want = server.post("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "the quick brown fox"}], "max_tokens": 40, "seed": 3,
        "temperature": 0.7, "top_p": 0.95})[2]["choices"][0]["message"]["content"]
    check(first[0] == want, "the page shows another text than the API gives")
    # Regenerated with the same seed: the same text, in place of the old one.
    browser.run("$('again').click()")
    browser.wait("running === null && status_text().includes('40 tokens')")
    check(browser.run("texts()") == first, "regenerating changed the text")
    if folder:
        browser.screenshot(folder / "page-chat-light.png")
    # A reply of ten seconds and more, which its model may not end by itself, stopped with Escape.
    browser.run("window.plain = fetch; window.fetch = (url, how) => plain(url, how?.body ? {...how, "
                "body: JSON.stringify({...JSON.parse(how.body), ignore_eos: true})} : how)")
    browser.run("$('max_tokens').value = 15000; $('input').focus()")
    browser.send("Input.insertText", text="go on")
    browser.key("Enter", "\r")
    browser.wait("texts().length === 2 && texts()[1].length > 5")
    browser.key("Escape")
    browser.wait("running === null && status_text() === 'stopped'")
    browser.run("window.fetch = plain")
    limit = time.monotonic() + 10
    while server.metrics()["num_requests_running"] > 0:
        check(time.monotonic() < limit, "a stopped reply goes on in the engine")
        time.sleep(0.05)
    # The graphs, reached by keyboard, in the dark, on a phone.
    browser.run("$('tab-chat').focus()")
    browser.key("ArrowRight")
    check(browser.run("!$('engine').hidden && $('chat').hidden"), "the tab did not open")
    load = [server.open_stream("/v1/completions", {"prompt": "x", "max_tokens": 15000, "ignore_eos": True})
            for _ in range(3)]
    browser.wait("graphs[0].lines[0].at(-1) === 3 && graphs[2].lines[0].at(-1) > 0")
    time.sleep(4)
    browser.look("dark", 1000, 720)
    if folder:
        browser.screenshot(folder / "page-engine-dark.png")
    browser.look("dark", 390, 800, mobile=True)
    check(browser.run("document.documentElement.scrollWidth <= 390"), "too wide for a phone")
    browser.run("$('tab-chat').click()")
    check(browser.run("document.documentElement.scrollWidth <= 390"), "too wide for a phone")
    for connection, response in load:
        response.close()
        connection.close()


def main():
    program = shutil.which("chromium")
    if program is None:
        print("page_test: Chromium is not installed; scripts/setup.sh --full installs it")
        sys.exit(SKIPPED)
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as work:
        Server.model = harness.make_model(work)
        with Server("--context", "16384") as server:
            browser = Browser(program, f"{work}/profile")
            try:
                drive(browser, server, folder)
            finally:
                browser.close()
    print("page_test: passed")


if __name__ == "__main__":
    main()
