"""Thirty hostile labels through the cells of a study into a built site: nothing runs, no file is read, all are shown as they are.
The study is made up (files of predictions as other people might give them), and only the cells that write pages are run."""
import json, os, re, shutil, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
import pytest
from conftest import ROOT, once

RUN = 'window.ran=1'
LABELS = [
    f'<script>{RUN}</script>', f'"><svg onload={RUN}>', f"'><img src=x onerror={RUN}>", f'</td></table><iframe srcdoc="<script>parent.{RUN}</script>">',
    'b\n\n```{include} ../../../../../../../../etc/passwd\n:literal:\n```\n', '```{literalinclude} /etc/passwd\n```', '{download}`../../../../../../etc/passwd`', '````\n\n```{csv-table}\n:file: /etc/passwd\n```',
    f'````\n````{{raw}} html\n<script>{RUN}</script>\n````', '::::::\n\n:::{include} /etc/passwd\n:::', r'costs $\frac$ more', 'pay $5 or $6', r'$$\begin{x}$$ \begin{equation}', 'tap `code` ``two``', 'a | b | c\n--|--|--',
    f'[click](javascript:{RUN}) <javascript:{RUN}>', '![x](../../../../../../etc/passwd) [y](/etc/passwd)', f'<!-- <script>{RUN}</script>', 'bell \x07 back \x08 page \x0c end', 'right \u202egnp.exe\u202c left', 'line\none\r\ntwo',
    'long ' + 'very '*400 + 'end', '🕺\u200d💃 🏳️\u200d🌈', '盆踊り ダンス', "=cmd|' /C calc'!A0", '\x1b[31mred\x1b]0;title\x07', 'text\n\n# heading\n\n% comment', '{{ 7*7 }} {% raw %} @fig-x [@tbl-x]', ']]> &amp; &lt; <![CDATA[x',
    '"double" \'single\' -- ... (c)']
MODEL = f'<img src=x onerror={RUN}> $x$ `y` | *z*'


def execute(folder):
    "Make up a study in `folder`/runs/hostile and run what writes pages, in a process of its own"
    import matplotlib, numpy as np, pandas as pd
    matplotlib.use('agg')
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    from report.gallery import film, jpeg, strip
    run = folder/'runs/hostile'
    classes, n = sorted(LABELS), 2*len(LABELS)
    true = np.repeat(np.arange(len(classes)), 2)
    for model, seeds, sure in (('per_frame', (0, 1), .3), (MODEL.replace('/', ''), (0,), .8)):
        at = run/'predictions'/model
        for k in seeds:
            rng = np.random.default_rng(k)
            p = rng.random((n, len(classes))) + sure*40*np.eye(len(classes))[true]*(rng.random((n, 1)) < sure)
            table = pd.DataFrame(p/p.sum(1, keepdims=True), columns=[f'p_{c}' for c in classes])
            for extra in ('', 'shuffled'):
                (at/extra).mkdir(parents=True, exist_ok=True)
                table.assign(clip_id=[f'<i>{i}' for i in range(n)], group=[f'u{i//2}' for i in range(n)], label=[classes[i] for i in true], pretraining='<b>kinetics</b> `x`').to_parquet(at/extra/f'seed{k}.parquet')
        (run/'models'/model).mkdir(parents=True)
        (run/'models'/model/'cost.json').write_text(json.dumps(dict(ms_per_clip=3., parameters=10, device=f'<script>{RUN}</script>', threads=1)))
    (run/'known.json').write_text(json.dumps(dict(scene_bias=0., pairs=[dict(classes=classes[:2], differs=f'<script>{RUN}</script>')])))
    frames = np.full((6, 48, 64, 3), 90, np.uint8)
    (run/'media').mkdir()
    for name, data in (('x.mp4', film(frames, 6)), ('x.jpg', jpeg(frames[0])), ('x.webp', strip(frames))): (run/'media'/name).write_bytes(data)
    (run/'media/gallery.json').write_text(json.dumps(dict(key='', clips=[dict(differs=f'<script>{RUN}</script>' if k < 2 else None, label=c, clip='a', source='youtube', upload=f'"><script>{RUN}</script>', video='x.mp4', poster='x.jpg', strip='x.webp',
                                                                              width=64, height=48, seconds=1.) for k, c in enumerate(classes)])))
    (run/'record.json').write_text(json.dumps(dict(study='hostile', parameters=dict(classes=LABELS), versions={}, other_versions={}, commit=None, dirty=None, finished=None, seconds={}, cells={}, machine=dict(cpu=LABELS[0]))))
    def cells(stem, inject, keep, **names):
        nb = read_nb(folder/'nbs'/f'{stem}.ipynb')
        shell = CaptureShell(mpl_format='png')
        shell.run('from kinetics_dance.comparison import *\nimport json, numpy as np, pandas as pd\nfrom pathlib import Path')
        shell.user_ns.update(names)
        made = []
        for c in nb.cells:
            # the other pages are not made here: what leads to them is a word
            if c.cell_type == 'markdown': c.source = re.sub(r'\[([^\[\]]*)\]\([^)]*\)|@(?:fig|tbl|sec|eq)-[\w-]+', r'\1', c.source)
            else:
                if 'parameters' in c.metadata.get('tags', []): c.source = inject
                if not keep(c): continue
                c.source = re.sub(r'(?m)^#\| *exports?$|^from nbdev.*\n', '', c.source)
                shell.cell(c)
                if shell.exc: raise shell.exc
            made.append(c)
        nb.cells = made
        write_nb(nb, run/'executed'/f'{stem}.ipynb')
    study = "study, runs, n_resamples, bootstrap_seed, confidence, baseline, contrast, margin = 'hostile', 'runs', 20, 0, .95, 'per_frame', None, .02"
    (run/'executed').mkdir()
    cells('05_comparison', study, lambda c: '#| study' in c.source or 'import' in c.source or 'parameters' in c.metadata.get('tags', []) or 'claims = ' in c.source)
    cells('index', study, lambda c: '#| study' in c.source or 'import' in c.source or 'parameters' in c.metadata.get('tags', []))
    # the data: as if its clips had been listed and fetched
    clips = pd.DataFrame([dict(label=c, youtube_id=f'{s}{k}-{i}', group=f'{s}{k}-{i}', clip_id=f'{s}{k}-{i}', split=s, time_start=0., time_end=10., status='ok', reason=None, path='media/x.mp4', why=c, updated=0., bytes=1)
                          for k, s in enumerate(('train', 'train', 'valid', 'test')) for i, c in enumerate(classes)])
    clips.loc[clips.index[:30], ['status', 'reason']] = np.array([['missing']*30, classes]).T
    shown = {'crosstab', 'gone.groupby', 'attrition_report(', 'balance(', 'plot_attrition(', 'plot_audit(', 'video = lambda', 'Markdown(conclusion('}
    def data(c):
        c.source = re.sub(r"(?m)^(run|check_study|lines, gone|clips = choose|test_eq|outcome = collect|p = dict|         n_train=|         motion=|         url_template|         memory_mb).*\n", '', c.source)
        return '#| study' in c.source and any(s in c.source for s in shown) or 'import' in c.source
    cells('00_data', '', data, run=run, lines=clips, gone=clips[:30], clips=clips, outcome=clips, listed=clips, source='youtube', folds=None)
    from types import SimpleNamespace
    watched = SimpleNamespace(classes=classes, windows=np.eye(len(classes)), starts=np.zeros(len(classes)), seconds=3.)
    one = SimpleNamespace(youtube_id='test3-3', clip_id='test3-3', seconds=3.)
    from IPython.display import Markdown
    from kinetics_dance.core.text import conclusion, for_markdown
    cells('06_inference', '', lambda c: 'Markdown(conclusion(' in c.source, watched=watched, uploads=[], one=one, clips=clips.assign(seconds=3.), infer_model=MODEL, Markdown=Markdown, for_markdown=for_markdown, conclusion=conclusion)


@pytest.fixture(scope='module')
def site(tmp_path_factory, worker_id):
    def make(at):
        (at/'nbs').mkdir(parents=True)
        for name in ('00_data', '05_comparison', '06_inference', 'index'): shutil.copy(ROOT/f'nbs/{name}.ipynb', at/'nbs')
        shutil.copy(ROOT/'settings.ini', at)
        (at/'kinetics_dance').symlink_to(ROOT/'kinetics_dance')
        for args in ([__file__, at], ['-m', 'report.site', 'hostile', '--root', at, '--out', at/'site']):
            p = subprocess.run([sys.executable, *map(str, args)], cwd=at, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, timeout=300)
            assert p.returncode == 0, (p.stdout + p.stderr)[-6000:]
    return once(tmp_path_factory, worker_id, 'hostile', make)/'site'


PAGES = ('data', 'comparison', 'inference', 'index', 'results-hostile', 'record')


class Reader(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.text, self.tags, self.on = '', [], []
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.on += [f'<{tag} {k}={v}>' for k, v in attrs if k.startswith('on') or str(v).strip().lower().startswith('javascript:') or k == 'srcdoc']
    def handle_data(self, d): self.text += d


def test_nothing_came_in(site):
    "No page has an element, a handler or a line of a file that a label asked for; no label is lost"
    from kinetics_dance.core.text import visible
    secret = Path('/etc/passwd').read_text().splitlines()[0] if Path('/etc/passwd').exists() else 'root:x:0:0'
    assert not list(site.rglob('passwd*'))
    for p in site.rglob('*.html'):
        r = Reader(p)
        assert not r.on and 'iframe' not in r.tags and secret not in r.text, (p.name, r.on[:3])
        assert RUN not in ''.join(re.findall(r'<script[^>]*>(.*?)</script>', p.read_text(), re.S)), p.name
        assert 'Content-Security-Policy' in p.read_text()
    short = [visible(l) for l in LABELS if len(visible(l)) < 48]
    assert len(short) > 20
    for name, lines in (('comparison', short), ('data', short), ('results-hostile', [visible(l.replace('_', ' ')) for l in LABELS])):
        text = Reader(site/f'{name}.html').text
        assert not [l for l in lines if l not in text], name
    assert MODEL in Reader(site/'inference.html').text and MODEL in Reader(site/'comparison.html').text


def test_tables_for_spreadsheets(site):
    "No cell of a table begins like a formula"
    import csv
    files = sorted((site/'_static/results').rglob('*.csv'))
    assert len(files) > 5
    for f in files:
        with f.open(newline='', encoding='utf-8') as file: cells = [c for row in csv.reader(file) for c in row]
        assert not [c for c in cells if re.match(r'[=+@\t\r]|-(?![\d.])', c)], f.name
    assert "'=cmd|" in (site/'_static/results/hostile/confusion.csv').read_text()


def test_nothing_runs(site):
    "In a browser, from files and as the policy has it: no script of a label, no other host, and the theme's own scripts do run"
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install playwright')
    from test_browser import CHROMIUM
    if not CHROMIUM: pytest.skip('no browser: install chromium, or Google Chrome')
    with playwright.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page, wrong, asked = b.new_page(), [], []
        page.on('console', lambda m: m.type == 'error' and wrong.append(m.text))
        page.on('pageerror', lambda e: wrong.append(str(e)))
        page.on('dialog', lambda d: (wrong.append(d.message), d.dismiss()))
        page.on('request', lambda r: asked.append(r.url))
        for name in PAGES:
            page.goto((site/f'{name}.html').as_uri(), wait_until='load')
            assert page.evaluate('window.ran') is None and not wrong, (name, wrong)
            assert page.evaluate('document.body.dataset.theme'), 'the script of the theme did not run'
            if name == 'results-hostile': assert page.locator('button.play-all').count() == 1
        assert not [u for u in asked if not u.startswith(('file:', 'data:', 'blob:'))]
        # what would come through all the same is stopped by the policy: a script, a handler, an address
        page.evaluate("s => { const d = document.createElement('div'); d.innerHTML = s; document.body.append(d); const t = document.createElement('script'); t.textContent = 'window.ran=1'; document.body.append(t) }",
                      f'<img src="data:," onerror="{RUN}"><a id="bad" href="javascript:{RUN}">x</a>')
        page.evaluate("document.getElementById('bad').click()")
        page.wait_for_timeout(300)
        assert page.evaluate('window.ran') is None
        b.close()


if __name__ == '__main__': execute(Path(sys.argv[1]))
