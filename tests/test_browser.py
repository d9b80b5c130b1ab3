"""The site in a real browser: it loads from files and from a server, asks nobody else, can be searched, read in both themes and on a
phone, by keyboard and by a screen reader; films play. Of the site in _site/ if that is up to date, else of one made from the smoke study."""
import functools, http.server, json, os, re, shutil, threading
from pathlib import Path
import pytest
from conftest import ROOT
from report.common import wings

pytest.importorskip('playwright', reason='playwright is not installed: pip install playwright')
axe_module = pytest.importorskip('axe_playwright_python.sync_playwright', reason='axe is not installed: pip install axe-playwright-python')
from playwright.sync_api import Error, sync_playwright

CHROMIUM = next((p for n in ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable') if (p := shutil.which(n))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no browser: install chromium, or Google Chrome')
PHONE, DESK = dict(width=390, height=844), dict(width=1280, height=900)


@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--allow-file-access-from-files=false', '--autoplay-policy=no-user-gesture-required'])
        yield b
        b.close()


@pytest.fixture(scope='module')
def context(browser):
    c = browser.new_context(viewport=PHONE)
    yield c
    c.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *a): pass


@pytest.fixture(scope='module')
def server(whole_site):
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(whole_site)))
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{s.server_port}'
    s.shutdown(); s.server_close()


class Visit:
    "A tab that remembers what went wrong in it and whom it asked"
    def __init__(self, context):
        self.page, self.wrong, self.asked = context.new_page(), [], []
        self.page.on('console', lambda m: m.type == 'error' and self.wrong.append(m.text))
        self.page.on('pageerror', lambda e: self.wrong.append(str(e)))
        # leaving a page gives up what it still fetches: no fault of its
        self.page.on('requestfailed', lambda r: r.failure != 'net::ERR_ABORTED' and self.wrong.append(f'failed: {r.url}'))
        self.page.on('request', lambda r: self.asked.append(r.url))

    def go(self, url):
        "Load a page; what went wrong"
        self.wrong.clear(); self.asked.clear()
        self.page.goto(url, wait_until='load')
        mine = re.match(r'\w+://[^/]*', url)[0]
        return [*self.wrong, *(f'asked for {u}' for u in self.asked if not u.startswith((mine, 'data:', 'blob:')))]


def moved(site): return {old: new for old, new in json.loads((ROOT/'report'/'moved.json').read_text()).items()}


def html_pages(site):
    "All pages, without those that only lead on to the new address of one"
    return sorted(p for p in site.glob('*.html') if 'http-equiv="refresh"' not in p.read_text(encoding='utf-8')[:600])


def sources(site): return sorted((site/'_modules').rglob('*.html'))


def grave(results): return [f"{v['id']} ({v['impact']}): {v['nodes'][0]['html'][:160]} +{len(v['nodes']) - 1}" for v in results.response['violations'] if v['impact'] in ('serious', 'critical')]


WIDE = """() => { const w = document.documentElement; if (w.scrollWidth <= w.clientWidth) return null;
  const e = [...document.querySelectorAll('.content *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).pop(); return `${w.scrollWidth} px: ` + (e ? e.outerHTML.slice(0, 120) : '') }"""


FAINT = """() => { // text whose colour is too near to what it stands on (WCAG AA); one example of each pair of colours
  const rgb = s => { const m = s.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m[3] ?? 1] };
  const over = (a, b) => [0, 1, 2].map(i => a[i]*a[3] + b[i]*(1 - a[3])).concat(1);
  const lum = c => { const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= .04045 ? v/12.92 : ((v + .055)/1.055)**2.4); return .2126*r + .7152*g + .0722*b };
  const behind = new Map(), back = e => { if (!e) return [255, 255, 255, 1]; if (!behind.has(e)) { const c = rgb(getComputedStyle(e).backgroundColor); behind.set(e, c[3] === 1 ? c : over(c, back(e.parentElement))) } return behind.get(e) };
  const found = {}, walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n; n = walk.nextNode();) { const e = n.parentElement; if (!n.data.trim() || !e.checkVisibility({opacityProperty: true, visibilityProperty: true}) || e.closest('video, svg, script, style, noscript, [aria-hidden=true]')) continue;
    const s = getComputedStyle(e), b = back(e), f = over(rgb(s.color), b), key = f + '|' + b;
    const size = parseFloat(s.fontSize), need = size >= 24 || size >= 18.66 && s.fontWeight >= 700 ? 3 : 4.5;
    const [x, y] = [lum(f), lum(b)].sort((p, q) => q - p), r = (x + .05)/(y + .05);
    if (r < need - .01 && !(key in found)) found[key] = `${r.toFixed(2)}: ${e.tagName} ${e.className} "${n.data.trim().slice(0, 40)}"` }
  return Object.values(found) }"""


@pytest.mark.parametrize('part', range(2))
def test_every_page_as_a_file(whole_site, context, part):
    "No error, no other host, no sideways scrolling on a phone, nothing that axe calls serious, and text that can be read in either theme"
    axe, tab, bad = axe_module.Axe(), Visit(context), []
    tab.page.emulate_media(color_scheme='light')
    for p in html_pages(whole_site)[part::2]:
        bad += [f'{p.name}: {w}' for w in tab.go(p.as_uri())]
        if wide := tab.page.evaluate(WIDE): bad.append(f'{p.name}: scrolls sideways on a phone, {wide}')
        # axe takes seconds to look at the colours of a page, and finds no more than FAINT does: it has some pages to itself below
        bad += [f'{p.name}: {v}' for v in grave(axe.run(tab.page, options={'resultTypes': ['violations'], 'rules': {'color-contrast': {'enabled': False}}}))]
        for theme in ('light', 'dark'):
            tab.page.emulate_media(color_scheme=theme)
            bad += [f'{p.name}, {theme}: too faint, {x}' for x in tab.page.evaluate(FAINT)]
        tab.page.emulate_media(color_scheme='light')
    tab.page.close()
    assert not bad, '\n'.join(bad)
    assert len(html_pages(whole_site)) > 50


@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_colours_by_axe(whole_site, context, theme):
    "What axe says of the colours of a page of each kind, with and without code"
    axe, tab, bad = axe_module.Axe(), Visit(context), []
    tab.page.emulate_media(color_scheme=theme)
    for name in ('index', 'licence', 'deploy', 'deploy-output', *[p.stem for p in sorted(whole_site.glob('results-*.html'))][:1]):
        tab.go((whole_site/f'{name}.html').as_uri())
        bad += [f'{name}: {v}' for v in grave(axe.run(tab.page, options={'resultTypes': ['violations'], 'runOnly': ['color-contrast']}))]
    tab.page.emulate_media(color_scheme='light')
    tab.page.close()
    assert not bad, '\n'.join(bad)


def test_faint_text_is_seen(context):
    "The check of colours finds what is too faint, and nothing else"
    page = context.new_page()
    page.set_content('<body style="background:#fff"><p style="color:#999">faint</p><p style="color:#222">good</p><div style="background:#000"><p style="color:#eee">good, too</p><p style="color:#444">dark</p></div></body>')
    found = page.evaluate(FAINT)
    assert len(found) == 2 and '"faint"' in found[0] and '"dark"' in found[1]
    page.close()


def test_every_page_from_a_server(whole_site, server, context):
    tab, bad = Visit(context), []
    for p in html_pages(whole_site) + sources(whole_site):
        bad += [f'{p.name}: {w}' for w in tab.go(f'{server}/{p.relative_to(whole_site)}')]
    tab.page.close()
    assert not bad, '\n'.join(bad)


def test_old_addresses_lead_on(whole_site, context):
    "Each page of version 0.1.0 that moved; as a browser follows it"
    tab, names = Visit(context), moved(whole_site)
    assert names and all((whole_site/f'{x}.html').exists() for old, new in names.items() for x in (old, new))
    # where a wing took the name, its page tells what is where
    gone = {old: new for old, new in names.items() if old not in wings(ROOT)}
    for old, new in list(gone.items())[::7]:
        tab.page.goto((whole_site/f'{old}.html').as_uri(), wait_until='commit')
        tab.page.wait_for_url(f'**/{new}.html')
        assert tab.page.locator('h1').first.inner_text() != 'This page has moved'
    tab.page.close()


@pytest.mark.parametrize('how', ['file', 'server'])
def test_search(whole_site, server, context, how):
    "A function, a class, a word of prose"
    tab = Visit(context)
    for word, where in (('read_frames', 'reading.html'), ('ClipTable', 'clips-table.html'), ('backdrop', 'synthetic-dancers.html')):
        url = (whole_site/'search.html').as_uri() if how == 'file' else f'{server}/search.html'
        assert not tab.go(f'{url}?q={word}')
        tab.page.wait_for_selector('#search-results ul.search li a', timeout=20_000)
        links = tab.page.locator('#search-results ul.search li a').evaluate_all('l => l.map(a => a.getAttribute("href"))')
        assert any(where in l for l in links), (word, links)
        assert not tab.wrong
    tab.page.close()


def test_films_play(whole_site, context):
    "Of each page of results: after play() time goes on; nothing of them was loaded before; they are silent, loop, and have controls"
    tab = Visit(context)
    pages = sorted(whole_site.glob('results-*.html'))
    assert pages
    for p in pages:
        assert not tab.go(p.as_uri())
        films = tab.page.locator('.gallery video')
        if not films.count(): continue
        assert not [u for u in tab.asked if u.endswith('.mp4')]
        assert tab.page.evaluate("[...document.querySelectorAll('video')].every(v => v.controls && v.muted && v.loop && v.preload === 'none' && v.poster && v.tabIndex >= 0 && v.getAttribute('aria-label'))")
        for i in (0, films.count() - 1):
            films.nth(i).evaluate('v => v.play()')
            tab.page.wait_for_function('v => v.currentTime > .1 && v.videoWidth > 0', arg=films.nth(i).element_handle(), timeout=20_000)
            films.nth(i).evaluate('v => v.pause()')
        button = tab.page.locator('button.play-all').first
        button.focus(); tab.page.keyboard.press('Enter')
        tab.page.wait_for_function("[...document.querySelectorAll('.gallery video')].every(v => !v.paused)", timeout=20_000)
        tab.page.keyboard.press('Enter')
        tab.page.wait_for_function("[...document.querySelectorAll('.gallery video')].every(v => v.paused)", timeout=20_000)
        assert not tab.wrong
    tab.page.close()


def test_clips_of_each_class(whole_site):
    "Each class of a study has a film and a strip, of some tens of kB"
    p = whole_site/'results-smoke.html' if (whole_site/'results-smoke.html').exists() else whole_site/'results-demo.html'
    s = p.read_text()
    films, strips = re.findall(r'<source src="([^"]+\.mp4)"', s), re.findall(r'<img[^>]*class="strip"[^>]*src="([^"]+)"', s)
    from kinetics_dance.synthetic.dancers import CLASSES
    assert len(films) == len(strips) == len(CLASSES) and all(f'A clip of {c}' in s for c in CLASSES)
    for f in films + strips: assert 1000 < (whole_site/f).stat().st_size < 100_000, f


def test_copy_buttons(whole_site, context):
    tab = Visit(context)
    tab.page.set_viewport_size(DESK)
    assert not tab.go((whole_site/'index.html').as_uri())
    block = tab.page.locator('div.highlight:has(button.copybtn)').first
    block.scroll_into_view_if_needed()
    tab.page.evaluate("document.addEventListener('copy', () => { window.copied = getSelection().toString() || document.activeElement.value })")
    block.hover()
    block.locator('button.copybtn').click()
    tab.page.wait_for_function('window.copied')
    assert tab.page.evaluate('window.copied').strip() == block.locator('pre').inner_text().strip()
    assert tab.page.locator('.cell_output button.copybtn').count() == 0
    tab.page.set_viewport_size(PHONE)
    tab.page.close()


def test_first_paint_waits_for_no_media(whole_site, server, context):
    "On a slow line the page of results is painted before any film, and before most pictures, have come"
    tab = Visit(context)
    cdp = context.new_cdp_session(tab.page)
    cdp.send('Network.enable'); cdp.send('Network.setCacheDisabled', dict(cacheDisabled=True))
    cdp.send('Network.emulateNetworkConditions', dict(offline=False, latency=100, downloadThroughput=200_000, uploadThroughput=100_000))
    page = next(p for p in sorted(whole_site.glob('results-*.html')))
    tab.page.goto(f'{server}/{page.name}', wait_until='commit')
    tab.page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length", timeout=30_000)
    paint = tab.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    tab.page.wait_for_load_state('load')
    media = tab.page.evaluate("performance.getEntriesByType('resource').filter(e => /\\.(png|svg|jpg|webp|mp4)/.test(e.name) && !/icon/.test(e.name)).map(e => [e.name.split('/').pop(), e.responseEnd])")
    assert not [m for m in media if m[0].endswith('.mp4')]
    assert not media or paint < max(t for _, t in media), (paint, media)
    tab.page.close()


def test_figures_in_the_dark(whole_site, context):
    "A figure has something as light as text on something as dark as the page, and is no white hole; on a phone it fits"
    import io
    import numpy as np
    from PIL import Image
    tab = Visit(context)
    tab.page.emulate_media(color_scheme='dark')
    seen = 0
    for name in [p.name for p in sorted(whole_site.glob('results-*.html'))] + ['index.html']:
        tab.go((whole_site/name).as_uri())
        for h in tab.page.locator('img.drawing').element_handles()[:4]:
            h.scroll_into_view_if_needed()
            tab.page.wait_for_function('i => i.complete && i.naturalWidth', arg=h)
            x = np.asarray(Image.open(io.BytesIO(h.screenshot())).convert('L'), float)
            assert np.median(x) < 60 and (x > 170).mean() > .002, (name, np.median(x), (x > 170).mean())
            assert h.bounding_box()['width'] <= PHONE['width']
            seen += 1
    assert seen
    tab.page.emulate_media(color_scheme='light')
    tab.page.close()


def test_screenshots(whole_site, browser, screens):
    "Home, comparison and a notebook in both themes and two widths, for a look"
    screens.mkdir(parents=True, exist_ok=True)
    for theme in ('light', 'dark'):
        for kind, size in (('desk', DESK), ('phone', PHONE)):
            c = browser.new_context(viewport=size, color_scheme=theme)
            tab = c.new_page()
            for name in ('index', 'comparison', 'frames', *[p.stem for p in sorted(whole_site.glob('results-*.html'))][:1]):
                tab.goto((whole_site/f'{name}.html').as_uri())
                tab.screenshot(path=screens/f'{name}_{theme}_{kind}.png')
            back = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r'\d+', back)[:3])) < 200) == (theme == 'dark'), back
            c.close()
    assert all(p.stat().st_size > 10_000 for p in screens.glob('*.png'))
