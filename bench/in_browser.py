"""Does the page *Try it yourself* say what `predict` says? Clips of the test split through both, in a real Chromium.

    python -m bench.in_browser runs/demo _site 50

Frames: the page's models are asked about the very frames that `predict` saw. Files: the page decodes the file itself."""
import base64, json, sys, time
from pathlib import Path
import numpy as np, pandas as pd
from playwright.sync_api import sync_playwright
from kinetics_dance.inference import Predictor
from report.try_it import PAGE, models
from shutil import which

CHROMIUM_NAMES = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
ASK = "([m, x]) => tryIt.ask(m, Uint8Array.from(atob(x), c => c.charCodeAt(0))).then(l => l.map(a => [...a]))"
SAID = "document.getElementById('try-watched').textContent"


def predicted(folder, videos):
    "{model: [(frames that the network saw, probabilities) of each video]}"
    res = {}
    for name, at, _ in models(folder):
        p, seen = Predictor.load(at), []
        ask = p.probabilities
        def remembering(x): seen.append((x, ask(x))); return seen[-1][1]
        p.probabilities = remembering
        for v in videos: p.predict(v)
        p.close()
        res[name] = seen
    return res


def watched(tab, video):
    "What the page says of a file that is dropped on it, and how long it takes"
    tab.evaluate("document.getElementById('try-watched').textContent = ''")
    began = time.perf_counter()
    tab.set_input_files('#try-file', str(video))
    while 'seconds.' not in (said := tab.evaluate(SAID)):
        if tab.locator('#try-watched.try-error').count(): raise SystemExit(said)
        tab.wait_for_timeout(20)
    return tab.evaluate('tryIt.watched.probabilities'), time.perf_counter() - began


def main(folder, site, n):
    folder, t = Path(folder), pd.read_csv(Path(folder)/'clips.csv', dtype={'clip_id': str})
    t = t[(t.status == 'ok') & (t.split == 'test')].sample(n, random_state=0)
    videos = [folder/p for p in t.path]
    want = predicted(folder, videos)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=next(filter(None, map(which, CHROMIUM_NAMES))), args=['--no-sandbox'])
        tab = browser.new_page()
        tab.goto((Path(site).resolve()/f'{PAGE}.html').as_uri())
        began = time.perf_counter()
        tab.click('#try-load')
        tab.wait_for_selector('#try-bars .try-number:not(:empty)', timeout=120_000)
        res = dict(clips=n, chromium=browser.version, load_seconds=round(time.perf_counter() - began, 2))
        files = [watched(tab, v) for v in videos]
        for m, seen in want.items():
            said = np.concatenate([tab.evaluate(ASK, [m, base64.b64encode(x.tobytes()).decode()]) for x, _ in seen])
            ours, dropped = np.concatenate([y for _, y in seen]), np.stack([f[m][0] for f, _ in files])
            off, file_off = np.abs(said - ours).max(1), np.abs(dropped - ours).max(1)
            res[m] = dict(frames=float(off.max()), files_median=float(np.median(file_off)), files_95=float(np.quantile(file_off, .95)), files_worst=float(file_off.max()),
                          same_class=float((dropped.argmax(1) == ours.argmax(1)).mean()))
        answers = []
        for _ in range(20):
            tab.click('#try-clip [data-do=shuffle]')
            tab.wait_for_timeout(500)
            answers.append(int(tab.get_attribute('#try-it', 'data-milliseconds')))
        res |= dict(answer_ms=float(np.median(answers)), file_seconds=float(np.median([s for _, s in files])))
        browser.close()
    print(json.dumps(res, indent=1))


if __name__ == '__main__': main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
