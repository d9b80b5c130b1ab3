"The site, from a toy study whose notebook uses every idiom that the bridge knows."
import fcntl, re, subprocess, sys
from html.parser import HTMLParser
import pytest
import preloaded
from conftest import ROOT, Toy, fill
from report.bridge import callouts, directives, page, prose


def rich(toy):
    "One notebook with everything in it"
    toy.nb('00_data', ('md', '# Data and *figures*\n\n> What `double` does, in one line.'),
           ('md', 'We average, see @eq-vote and @sec-plots, [the helper](parts/00_helper.ipynb), and `double` or `Frame.half`.\n\n'
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
    p = preloaded.run([sys.executable, '-m', 'report.site', 'toy', '--root', str(toy.root)], cwd=ROOT, capture_output=True, text=True, timeout=120)
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
    assert {p.name for p in out.glob('*.html')} >= {'index.html', 'data.html', 'parts-helper.html', 'record.html', 'search.html'}
    home = Page(out/'index.html')
    for text in ('The study', 'How it is built', 'Run record'): assert text in home.text
    p = Page(out/'data.html')
    assert p.find('h1') and 'What' in p.text and not re.search(r'#\||\{#|:::|@(fig|tbl|eq|sec)-line', p.text)
    assert 'a@fig-b' in p.text and '@fig-not-a-reference' in p.text
    assert 'Figure 1' in p.text and 'Table 1' in p.text and 'Figure 2' in p.text and 'Equation (1)' in p.text
    assert p.find('figure', id='data-fig-line') and p.find('figure', id='data-tbl-rows') and p.find('img', alt='A rising line', class_='plot')
    assert p.find('math') and p.find('a', href='#data-sec-plots') and p.find('a', href='parts-helper.html')
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
    assert page('training/01_learner') == 'training-learner' and page('index') == 'index'
    assert prose('`@fig-a` @fig-a.') == '`@fig-a` {numref}`fig-a`.'
    assert prose('see [frames](../nbs/01_frames.ipynb#store)') == 'see [frames](frames.ipynb#store)'


def test_finished_pages_are_checked(tmp_path):
    "A link, an anchor or a picture that leads nowhere, another host, a page that is too heavy: each is told"
    from report.polish import check_pages
    (tmp_path/'b.html').write_text('<h1 id="here">b</h1>')
    def told(html):
        (tmp_path/'a.html').write_text(html)
        return ' '.join(check_pages(tmp_path, ROOT))
    assert told('<a href="b.html#here">x</a> <a href="https://example.org">out</a> <a href="#y" id="y">y</a>') == ''
    assert 'c.html, which is not there' in told('<a href="c.html">x</a>')
    assert 'no such place' in told('<a href="b.html#there">x</a>') and 'no such place' in told('<a href="#there">x</a>')
    assert 'not there' in told('<img src="x.png">') and 'not there' in told('<video poster="x.jpg"></video>')
    assert 'loads https://example.org/x.js' in told('<script src="https://example.org/x.js"></script>')
    assert '1.60 MB' in told('x'*1_600_000)
    assert 'an absolute path' in told('<p>/somewhere/lib/python3.11/site-packages/torch/x.py</p>') and 'memory address' in told('<p>&lt;X at 0x7f00&gt;</p>')


def test_warnings_are_not_shown_errors_are():
    from report.bridge import without_warnings
    s = "/x/site-packages/torch/__init__.py:96: UserWarning: TF32 is\n  warnings.warn(\nerror: no such model\nFile /x/site-packages/a/b.py\n"
    assert without_warnings(s) == 'error: no such model\nFile a/b.py\n'


def test_links_of_the_readme():
    "Every relative link leads to a file of the repository, every anchor to a heading"
    bad = []
    for name in ('README.md', 'CONTRIBUTING.md'):
        if not (ROOT/name).exists(): continue
        text = re.sub(r'^```.*?^```', '', (ROOT/name).read_text(), flags=re.M | re.S)
        anchors = {re.sub(r'[^\w\- ]', '', h.lower()).strip().replace(' ', '-') for h in re.findall(r'^#+ (.+)$', text, re.M)}
        for url in re.findall(r'\]\(([^)\s]+)\)', text):
            path, _, anchor = url.partition('#')
            if re.match(r'\w+:', url): continue
            if path and not (ROOT/path).exists() or not path and anchor not in anchors: bad.append(f'{name}: {url}')
    assert not bad, bad


def test_links_between_pages():
    "Files of the repository are named as the site names them; what is not on the site is named in words; a slow pattern would hang here"
    from report.pages import links
    names = dict(kinetics='kinetics', cluster='cluster-guide')
    assert links('[a](kinetics.md#gpu) [b](pages/cluster.md) `[c](kinetics.md)`', names, ROOT).startswith('[a](kinetics.md#gpu) [b](cluster-guide.md)')
    assert links('[steps](../../Makefile)', names, ROOT) == 'steps (`Makefile`)' and links('[x](nowhere.txt)', names, ROOT) == '[x](nowhere.txt)'
    assert page('download/02_cvdf') == 'download-cvdf'
    assert prose('[m](../download/02_cvdf.ipynb)', 'pages') == '[m](download-cvdf.ipynb)' == prose('[m](02_cvdf.ipynb)', 'download')
    assert prose('[m](02_cvdf.md)') == '[m](02_cvdf.md)'
    links('[' + '`a` '*400 + '](x', names, ROOT)


def test_galleries(tmp_path):
    "Pairs come from one upload; a clip that is not there is not shown; made once"
    import numpy as np
    from report.gallery import make, show
    from report.bridge import Media
    d = tmp_path/'study'
    (d/'frames').mkdir(parents=True)
    rows = [('u1', 'left', 'train'), ('u2', 'left', 'test'), ('u2', 'right', 'test'), ('u3', 'alone', 'test'), ('u4', 'lost', 'test')]
    (d/'clips.csv').write_text('clip_id,label,youtube_id,group,split,source,status,path\n' + ''.join(f'{u}_{k},{k},{u},{u},{s},demo,ok,videos/{u}_{k}.mp4\n' for u, k, s in rows))
    for u, k, _ in rows[:-1]: np.save(d/f'frames/{u}_{k}.npy', np.full((12, 48, 64, 3), 90, np.uint8))
    (d/'known.json').write_text('{"pairs": [{"classes": ["left", "right"], "differs": "order"}]}')
    g = make(d, tmp_path/'out')
    assert [(c['clip'], c['differs']) for c in g['clips']] == [('u2_left', 'order'), ('u2_right', 'order'), ('u3_alone', None)]
    before = (tmp_path/'out/left.mp4').stat().st_mtime_ns
    assert make(d, tmp_path/'out') == g and (tmp_path/'out/left.mp4').stat().st_mtime_ns == before
    html = show(g, tmp_path/'out', Media(tmp_path/'media'))
    assert html.count('<video controls loop muted playsinline preload="none"') == 3 and html.count('class="pair"') == 1 and 'the same frames in another order' in html


def test_page_of_results(tmp_path):
    "Failing checks and networks that saw Kinetics are marked; a study that is kept without its run has a page, too"
    import json
    from report.bridge import Media
    from report.results import page as results_page, studies
    acc = dict(mean=.5, low=.4, high=.6)
    r = dict(study='kept', n_test=10, n_uploads=5, classes=['a', 'b'], models=dict(per_frame=dict(accuracy=acc, pretraining='ImageNet', seeds=[0]), seen=dict(accuracy=dict(acc, mean=.9), pretraining='Kinetics-400', seeds=[0])),
             verdicts=['seen is better than per_frame on 10 clips.'], known_answer=[dict(check='at most 0.5', model='per_frame', value=.5, low=.4, high=.6, passes=False)], notes=[], leaks=dict(near_duplicates=0), costs=[])
    d = tmp_path/'results/kept'; d.mkdir(parents=True)
    (d/'report.json').write_text(json.dumps(r))
    assert studies(tmp_path, 'runs', 'demo') == {'kept': d}
    text = results_page(tmp_path, 'kept', d, Media(tmp_path/'m'), lambda data, label, name: 'x')
    assert 'seen † is better than per-frame vote' in text and 'not to be compared' in text and 'did not find its known answer' in text and '90.0 % [40.0, 60.0]' in text


def test_quarto_files():
    "What `nbdev_docs` reads where Quarto is installed: as settings.ini says, with keys that Quarto knows"
    import jsonschema, yaml
    from nbdev.quarto import _nbdev_yml
    from report.common import settings
    cfg = settings(ROOT)
    val = {k: re.sub(r'%\((\w+)\)s', lambda m: cfg.get(m[1], raw=True), cfg.get(k, raw=True)) for k in ('title', 'description', 'branch', 'git_url', 'doc_host', 'doc_baseurl', 'doc_path')}
    assert (ROOT/'nbs/nbdev.yml').read_text() == _nbdev_yml.format(**val), 'nbs/nbdev.yml is not what nbdev makes of settings.ini'
    obj = lambda props, *need: dict(type='object', properties=props, required=list(need), additionalProperties=False)
    text, flag = dict(type='string'), dict(type='boolean')
    site = obj({**{k: text for k in ('title', 'site-url', 'description', 'repo-branch', 'repo-url', 'favicon')}, 'open-graph': flag, 'twitter-card': flag,
                'repo-actions': dict(type='array', items=dict(enum=['edit', 'source', 'issue', 'none'])), 'navbar': obj(dict(background=text, search=flag)), 'sidebar': obj(dict(style=dict(enum=['floating', 'docked'])))})
    html = obj({'theme': dict(anyOf=[text, obj(dict(light=text, dark=text), 'light', 'dark')]), 'css': text, 'toc': flag, 'keep-md': flag})
    schema = obj({'project': obj({'type': dict(const='website'), 'output-dir': text}), 'format': obj(dict(html=html, commonmark=text), 'html', 'commonmark'), 'website': site,
                  'metadata-files': dict(type='array', items=text, contains=dict(const='nbdev.yml'))}, 'website', 'project')
    for name in ('_quarto.yml', 'nbdev.yml'): jsonschema.validate(yaml.safe_load((ROOT/'nbs'/name).read_text()), schema)
    q = yaml.safe_load((ROOT/'nbs/_quarto.yml').read_text())
    assert q['project']['type'] == 'website' and (ROOT/'nbs'/q['format']['html']['css']).exists()
    assert cfg.get('custom_quarto_yml', 'True') == 'True', 'nbdev would overwrite nbs/_quarto.yml'


KNOWN = r'\{\.callout-(note|tip|important|warning|caution)\b[^}]*\}$|\{#(sec|fig|tbl|eq)-[\w-]+\}'


def test_constructs_that_both_understand():
    "Notebooks and prose pages hold no directive of Quarto or MyST that the other would print as it stands"
    from report.common import load_nb, notebooks, source
    texts = {p.name: '\n\n'.join(source(c) for c in load_nb(p)['cells'] if c['cell_type'] == 'markdown') for p in notebooks(ROOT).values()}
    texts |= {p.name: p.read_text() for p in (ROOT/'nbs/pages').glob('*.md')}
    bad = []
    for name, s in texts.items():
        s = re.sub(r'^```.*?^```|`[^`\n]+`', '', s, flags=re.M | re.S)
        bad += [f'{name}: {l}' for l in re.findall(r'^:::+ *(\S.*)$', s, re.M) if not re.match(KNOWN, l.strip())]
        bad += [f'{name}: {m}' for m in re.findall(r'\{(?:numref|ref|doc|eq|py:\w+)\}`[^`]*`|\{\{<.*?>\}\}|^\(\S+\)=$', s, re.M)]
    assert not bad, bad
