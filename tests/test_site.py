"The site, from a toy study whose notebook uses every idiom that the bridge knows."
import fcntl, re, subprocess, sys
from html.parser import HTMLParser
import pytest
from conftest import ROOT, Toy, fill
from report.bridge import callouts, directives, page, prose


def rich(toy):
    "One notebook with everything in it"
    toy.nb('00_data', ('md', '# Data and *figures*\n\n> What `double` does, in one line.'),
           ('md', 'We average, see @eq-vote and @sec-plots, [the helper](02a_helper.ipynb), and `double` or `Frame.half`.\n\n'
            '$$\\hat y = \\arg\\max_k \\frac1T\\sum_{t=1}^{T} f_k(x_t)$$ {#eq-vote}\n\nInline $x \\in \\mathbb{R}^{B\\times T}$ too.\n\n'
            '::: {.callout-tip}\n## What to expect\n*Nothing* much: see @fig-line.\n:::\n\n::: {.callout-warning collapse="true"}\n## A threat\nHidden.\n:::'),
           '#| default_exp data', "#| hide\nfrom nbdev.showdoc import show_doc",
           '#| export\nfrom fastcore.basics import patch',
           "#| code-fold: true\n#| code-summary: Imports for the study\nimport base64, io, av, numpy as np, pandas as pd, matplotlib.pyplot as plt\nfrom IPython.display import HTML, Markdown, Video",
           ('parameters', "study = 'demo'\nn = 2  # how many\nscale = 1.5"), ('md', '## Functions'),
           "#| export\ndef double(x:int, # A number, in clips\n           *args, times:float=2.0, # How often\n          )->float: # Twice `x`\n    \"Double `x`; see `Frame`.\"\n    return times*x",
           "#| exports\nclass Frame:\n    \"One frame.\"\n    def __init__(self, x): self.x = x",
           "#| export\n@patch\ndef half(self:Frame, by:int=2)->float:\n    \"Half of it.\"\n    return self.x/by",
           "double(3)", ('md', '## Plots {#sec-plots}\n\n@fig-line and @tbl-rows, and [@fig-film].'),
           "#| study\n#| label: fig-line\n#| fig-cap: \"A line: notice that it goes up.\"\n#| fig-alt: A rising line\n#| code-fold: true\nfig, ax = plt.subplots(figsize=(4, 2))\nax.plot(range(n))",
           "#| study\n#| label: tbl-rows\n#| tbl-cap: Two rows of numbers.\n#| echo: false\npd.DataFrame({'a': range(n), 'b': [.5]*n})",
           "#| echo: false\npd.DataFrame({'plain': [1, 2]})",
           "#| study\n#| label: fig-film\n#| fig-cap: A film.\n#| echo: false\nbuf = io.BytesIO()\nwith av.open(buf, 'w', 'mp4') as f:\n    s = f.add_stream('libx264', rate=8); s.width = s.height = 64; s.pix_fmt = 'yuv420p'\n"
           "    for i in range(8): f.mux(s.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 30*i, 'uint8'), format='rgb24')))\n    f.mux(s.encode())\n"
           "Video(buf.getvalue(), embed=True, mimetype='video/mp4', html_attributes='controls autoplay')",
           "#| echo: false\nMarkdown(f'With **{n} rows** we see @fig-line.')", "print('plain text')",
           ('md', '```python\nx = "@fig-not-a-reference"\n```\n\nMail `a@fig-b` stays.'))


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__(); self.tags, self.text = [], ''
        self.html = path.read_text(); self.feed(self.html)
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, d): self.text += d
    def find(self, tag, **kw): return [a for t, a in self.tags if t == tag and all((v in (a.get(k.rstrip('_')) or '')) for k, v in kw.items())]


def build(toy, rc=0):
    p = subprocess.run([sys.executable, '-m', 'report.site', 'toy', '--root', str(toy.root)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert p.returncode == rc, p.stdout + p.stderr
    return p


@pytest.fixture(scope='session')
def site(tmp_path_factory, worker_id):
    "One site for all tests: the first worker that needs it builds it, the others wait"
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == 'master' else base.parent
    with (base/'site.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (base/'site/built').exists(): return Toy(base/'site')
        toy = fill(Toy(base/'site'))
        rich(toy)
        for name in ('02_a', '03_b', '05_comparison'): (toy.root/f'nbs/{name}.ipynb').unlink()
        toy.run(); build(toy)
        (toy.root/'built').touch()
        return toy


def test_pages(site):
    out = site.root/'_site'
    assert {p.name for p in out.glob('*.html')} >= {'index.html', 'data.html', 'helper.html', 'record.html', 'search.html'}
    home = Page(out/'index.html')
    for text in ('The study', 'How it is built', 'Run record'): assert text in home.text
    p = Page(out/'data.html')
    assert p.find('h1') and 'What' in p.text and not re.search(r'#\||\{#|:::|@(fig|tbl|eq|sec)-line', p.text)
    assert 'a@fig-b' in p.text and '@fig-not-a-reference' in p.text
    assert 'Figure 1' in p.text and 'Table 1' in p.text and 'Figure 2' in p.text and 'Equation (1)' in p.text
    assert p.find('figure', id='data-fig-line') and p.find('figure', id='data-tbl-rows') and p.find('img', alt='A rising line', class_='plot')
    assert p.find('math') and p.find('a', href='#data-sec-plots') and p.find('a', href='helper.html')
    assert 'Imports for the study' in p.text and 'What this study sets' in p.text and 'plain text' in p.text
    assert p.find('div', class_='tip admonition') and p.find('details', class_='sd-')
    assert p.find('table', class_='dataframe') and 'matplotlib.lines' not in p.text


def test_api(site):
    p = Page(site.root/'_site/data.html')
    assert p.find('dt', id='toy.data.double') and p.find('dt', id='toy.data.Frame') and p.find('dt', id='toy.data.Frame.half')
    assert 'How often' in p.text and 'Twice' in p.text and p.find('a', href='_modules/toy/data.html#double')
    assert (site.root/'_site/_modules/toy/data.html').exists()
    assert p.html.count('py method') == 1 and p.html.count('py class') == 1


def test_media_are_files(site):
    p = Page(site.root/'_site/data.html')
    assert ';base64,' not in p.html and len(p.html) < 120_000
    (film,) = p.find('video')
    assert film['preload'] == 'none' and 'poster' in film and {'controls', 'loop', 'muted', 'playsinline'} <= set(film) and 'autoplay' not in film
    for src in [film['poster'], *(a['src'] for a in p.find('source') + p.find('img'))]: assert (site.root/'_site'/src).stat().st_size > 100


def test_asks_no_other_host(site):
    "No script, style, font, picture or frame from elsewhere, on any page"
    for f in (site.root/'_site').rglob('*.html'):
        for tag, a in Page(f).tags:
            url = a.get('src') or (a.get('href') if tag == 'link' else '') or ''
            assert not re.match(r'(https?:)?//', url), (f.name, tag, a)
    for f in (site.root/'_site').rglob('*.css'): assert not re.search(r'url\(["\']?(https?:)?//|@import ["\']http', f.read_text()), f.name
    assert (site.root/'_site/searchindex.js').read_text().startswith('Search.setIndex(')


def test_run_record(site):
    p = Page(site.root/'_site/record.html')
    for text in ('Parameters', 'Durations', 'Machine', 'Versions', '1.5', 'papermill', 'not in a git repository'): assert text in p.text, text


def test_repeated_and_refused(site):
    "Nothing changed: nothing is built; a page that would show a memory address, or a study not run whole, is refused and the old site stays"
    assert 'up to date' in build(site).stdout
    ex = site.folder/'executed/00_data.ipynb'
    good = ex.read_text()
    try:
        ex.write_text(good.replace('plain text\\n', '<toy.Frame object at 0x7f00deadbeef>\\n'))
        err = build(site, rc=2).stderr
        assert 'data.html: a memory address' in err
        ex.write_text(good.replace('plain text\\n', f'{site.root}/nbs\\n'))
        assert 'data.html: an absolute path' in build(site, rc=2).stderr
        ex.write_text(good.replace('see @eq-vote', 'see @fig-nowhere'))
        assert 'fig-nowhere' in build(site, rc=2).stderr
        ex.unlink()
        assert 'not run yet: 00_data' in build(site, rc=2).stderr
    finally: ex.write_text(good)
    assert 'plain text' in (site.root/'_site/data.html').read_text() and not list(site.root.glob('.site-*'))


def test_rules():
    assert directives('#| study\n#| fig-cap: "a: b"\n\nx = 1\n#| y') == ({'study': '', 'fig-cap': 'a: b'}, 'x = 1\n#| y')
    assert callouts('::: {.callout-note title="T"}\nbody\n:::') == ':::{admonition} T\n:class: note\nbody\n:::'
    assert page('01a_training') == 'training' and page('index') == 'index'
    assert prose('`@fig-a` @fig-a.') == '`@fig-a` {numref}`fig-a`.'
    assert prose('see [frames](01_frames.ipynb#store)') == 'see [frames](frames.ipynb#store)'
