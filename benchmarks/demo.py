"""How soon the page of `piat demo` is there, in a real Chromium: `python benchmarks/demo.py [--visits N] [--output FILE]`.

Each visit is of a fresh browser profile once the server is up. It needs Gradio, Playwright and a Chromium.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

from piat_hub.machine import cpu_model

OPENED = "() => document.querySelector('.said')?.innerText.startsWith('PGD-20')"
PAINTED = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"
ATTACK = """() => new Promise(done => {
    const begun = performance.now(); let running = false;
    new MutationObserver(() => {
        const step = document.querySelector('.said').innerText.startsWith('Step');
        if (running && !step) done(performance.now() - begun);
        running ||= step;
    }).observe(document.querySelector('#seen'), {subtree: true, childList: true, characterData: true});
    document.querySelector('#go').click();
})"""


def visit(browser, url):
    """Seconds of one visit: to the first paint, to the end of the opening attack, of an attack of 20 steps on both models."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(url)
    page.wait_for_function(OPENED, timeout=0)
    opening = page.evaluate("() => performance.now()")
    found = {"first_paint": page.evaluate(PAINTED), "opening": opening, "attack": page.evaluate(ATTACK)}
    context.close()
    return {name: milliseconds / 1000 for name, milliseconds in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visits", type=int, default=5)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    command = [sys.executable, "-m", "piat_hub", "demo", "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http\S+", server.stdout.readline())[0]
        with sync_playwright() as playwright:
            flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
            visits = [visit(browser, url) for _ in range(given.visits)]
            version = browser.version
    finally:
        server.terminate()
        server.wait()
    seconds = {
        name: {"median": round(statistics.median(all_), 3), "min": round(min(all_), 3), "max": round(max(all_), 3)}
        for name in visits[0]
        for all_ in [[one[name] for one in visits]]
    }
    facts = {"device": f"CPU {cpu_model() or platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__}
    facts |= {
        "chromium": version,
        "load": round(os.getloadavg()[0], 1),
        "date": date.today().isoformat(),
        "seconds": seconds,
    }
    print(json.dumps(facts, indent=2))
    if given.output:
        given.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
