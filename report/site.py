"""The site of a study: executed notebooks → nbdev's processors → the bridge → Sphinx → _site/.

    python -m report.site demo        # or: make site STUDY=demo"""
import argparse, ast, hashlib, json, os, re, shutil, subprocess, sys, tempfile
from html.parser import HTMLParser
from pathlib import Path
from .bridge import Media, check_links, definitions, page, to_myst
from .common import LETTERED, NUMBERED, ROOT, UserError, code_cells, load_nb, main, notebooks, read_json, settings, source, write_atomic, write_json

HERE = Path(__file__).parent


def sha(*parts): return hashlib.sha256(b'\0'.join(p if isinstance(p, bytes) else str(p).encode() for p in parts)).hexdigest()[:16]


def not_again(src):
    "nbdev runs every cell that imports something: keep it from running one that also does something else"
    if re.search(r'^#\| *(exports?|exporti)\b', src, re.M): return src
    try: body = ast.parse(src).body
    except SyntaxError: return src
    mixed = any(isinstance(n, (ast.Import, ast.ImportFrom)) for b in body for n in ast.walk(b)) and not all(isinstance(b, (ast.Import, ast.ImportFrom)) for b in body)
    return '#| eval: false\n' + src if mixed else src


def process(root, stems, executed, lib, cache):
    """{stem: path} of the notebooks as nbdev's `proc_nbs` leaves them. It imports what a page documents, which takes
    seconds, so what did not change is taken from `cache`."""
    library = b''.join(p.read_bytes() for p in sorted((root/lib).glob('*.py'))) + (HERE/'bridge.py').read_bytes() + (root/'settings.ini').read_bytes()
    res = {s: cache/f'{s}-{sha(library, (executed/f"{s}.ipynb").read_bytes())}.ipynb' for s in stems}
    todo = [s for s, p in res.items() if not p.exists()]
    if not todo: return res
    # a project of its own: `proc_nbs` writes _proc/ beside the settings.ini of the working directory
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        (tmp/'settings.ini').write_text((root/'settings.ini').read_text() + '\nrenderer = report.bridge.Api\n')
        (tmp/'nbs').mkdir()
        (tmp/lib).symlink_to(root/lib)
        for s in todo:
            nb = load_nb(executed/f'{s}.ipynb')
            for c in code_cells(nb, injected=True): c['source'] = not_again(source(c))
            write_json(tmp/'nbs'/f'{s}.ipynb', nb)
        path = os.pathsep.join([str(root), str(HERE.parent), os.environ.get('PYTHONPATH', '')])
        p = subprocess.run([sys.executable, '-m', 'report.site', '--process'], cwd=tmp, capture_output=True, text=True,
                           env={**os.environ, 'PYTHONPATH': path, 'MPLBACKEND': 'agg', 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'})
        if p.returncode:
            why = re.search(r'^Exception: (Error in notebook.*?)(?=\n"""|\nThe above|\Z)', p.stderr, re.M | re.S)
            raise UserError('nbdev could not process the notebooks :\n' + (why[1] if why else p.stdout + p.stderr).strip())
        for s in todo:
            for old in cache.glob(f'{s}-*.ipynb'): old.unlink()
            write_atomic(res[s], (tmp/'_proc'/f'{s}.ipynb').read_bytes())
    return res


def table(head, rows): return '\n'.join(['| ' + ' | '.join(map(str, r)) + ' |' for r in [head, ['---']*len(head), *rows]])


def record_page(rec):
    "MyST of the run record"
    def val(v): return f'`{json.dumps(v, ensure_ascii=False)}`'
    def dur(s): return f'{int(s)//60} min {int(s)%60:02d} s' if s >= 60 else f'{s:.1f} s'
    commit = '`' + rec['commit'][:12] + '`' + (', with changes that were not committed' if rec['dirty'] else '') if rec['commit'] else 'not in a git repository'
    rows = [(f'[{s}]({page(s)}.ipynb)', rec['cells'][s], dur(t)) for s, t in rec['seconds'].items()]
    names = dict(cpu='Processor', cores='Cores', memory_gb='Memory (GB)', python='Python', platform='System', gpu='GPU')
    return '\n\n'.join([
        '# Run record', ':::{div} lead\nWhat was run, with what, on which machine: enough to run it again.\n:::',
        f"Study `{rec['study']}`, finished {(rec['finished'] or '?').replace('T', ' ')[:16]} UTC. Commit: {commit}.",
        '## Parameters', table(['parameter', 'value'], [(f'`{k}`', val(v)) for k, v in rec['parameters'].items()]),
        '## Durations', table(['notebook', 'code cells', 'time'], [*rows, ('**all**', sum(rec['cells'].values()), dur(sum(rec['seconds'].values())))]),
        'Three model notebooks may run side by side, so the study takes less time than the sum.',
        '## Machine', table(['', ''], [(names.get(k, k), v) for k, v in rec['machine'].items()]),
        '## Versions', table(['package', 'version'], rec['versions'].items()),
        ':::{dropdown} Everything else that is pinned\n' + table(['package', 'version'], rec['other_versions'].items()) + '\n:::' if rec['other_versions'] else '']) + '\n'


def toctree(caption, pages): return f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(pages) + '\n```'


class Text(HTMLParser):
    "The text of a page, and what it would load"
    def __init__(self): super().__init__(); self.text, self.loads = [], []
    def handle_data(self, d): self.text.append(d)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        url = a.get('src') or a.get('poster') or (a.get('href') if tag == 'link' else None) or ''
        if re.match(r'(https?:)?//', url): self.loads.append(f'<{tag}> {url}')


def check_pages(out, root):
    "A page must not name this machine's folders or memory, nor ask another host for anything"
    bad = []
    for p in sorted(out.glob('*.html')):
        t = Text(); t.feed(p.read_text(encoding='utf-8'))
        text = ''.join(t.text)
        for what, pat in (('an absolute path', re.escape(str(root))), ('a memory address', r' at 0x[0-9a-f]+')):
            if m := re.search(f'.*{pat}.*', text): bad.append(f'{p.name}: {what}: {m[0].strip()[:160]}')
        bad += [f'{p.name}: loads {u}' for u in t.loads if not u.startswith('<link> ' + settings(root).get('doc_host', '-'))]
    if bad: raise UserError('the site was not built: ' + '; '.join(bad))


def build(root, study, runs='runs', out=None):
    "Build `_site/` of a study; True if there was anything to do"
    folder, out, lib = root/runs/study, out or root/'_site', settings(root)['lib_name']
    stems, executed = list(notebooks(root)), root/runs/study/'executed'
    if missing := [s for s in stems if not (executed/f'{s}.ipynb').exists()]:
        raise UserError(f"study {study!r}: not run yet: {', '.join(missing)}; `make report STUDY={study}` runs them")
    if 'index' not in stems: raise UserError('nbs/index.ipynb is missing: the site needs a home page')
    rec = read_json(folder/'record.json') or {}
    same = {k: v for k, v in rec.items() if k not in ('seconds', 'finished')}
    stamp = sha(json.dumps(same, sort_keys=True), str(root), *[p.read_bytes() for p in [*(executed/f'{s}.ipynb' for s in stems), *sorted((root/lib).glob('*.py')),
                root/'settings.ini', *sorted(HERE.glob('*'))] if p.is_file()])
    if (out/'.stamp').exists() and (out/'.stamp').read_text() == stamp: return False
    proc = process(root, stems, executed, lib, folder/'.site')
    with tempfile.TemporaryDirectory(prefix='.site-', dir=out.parent) as tmp:
        src, html = Path(tmp)/'src', Path(tmp)/'html'
        media = Media(src/'_static/media')
        cfg = settings(root)
        base = f"{cfg.get('doc_host')}{cfg.get('doc_baseurl')}".replace('%(user)s', cfg.get('user', '')) if cfg.get('doc_host') else ''
        nbs = {}
        for s in stems:
            nb = load_nb(proc[s])
            exp = [m[1] for c in code_cells(load_nb(executed/f'{s}.ipynb')) if (m := re.search(r'^#\| *default_exp +(\S+)', source(c), re.M))]
            nb['metadata']['module'] = exp[0] if exp else None
            nbs[s] = to_myst(nb, s, lib, media, base, definitions((root/lib/f'{exp[0]}.py').read_text(encoding='utf-8')) if exp else ())
        check_links(nbs.values())
        trees = [toctree('The study', [page(s) for s in stems if NUMBERED.match(s)] + ['record']*bool(rec))]
        if lettered := [page(s) for s in stems if LETTERED.match(s)]: trees.append(toctree('How it is built', lettered))
        nbs['index']['cells'] += [dict(cell_type='markdown', metadata={}, id=f'toc-{i}', source=t) for i, t in enumerate(trees)]
        for s, nb in nbs.items(): write_json(src/f'{page(s)}.ipynb', nb)
        if rec: write_atomic(src/'record.md', record_page(rec))
        shutil.copy(HERE/'conf.py', src); shutil.copy(HERE/'study.css', src/'_static')
        p = subprocess.run([sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html', '-d', str(Path(tmp)/'trees'), str(src), str(html)],
                           env={**os.environ, 'PYTHONPATH': str(HERE.parent), 'SITE_TITLE': cfg.get('title', lib), 'SITE_LIB': str(root/lib)}, capture_output=True, text=True)
        if p.returncode:
            raise UserError('the site was not built: Sphinx warns of\n' + re.sub(re.escape(str(src)) + '/?', '', p.stderr or p.stdout).strip())
        check_pages(html, root)
        (html/'.stamp').write_text(stamp)
        old = Path(tmp)/'old'
        if out.exists(): os.rename(out, old)
        os.rename(html, out)
    return True


def site():
    ap = argparse.ArgumentParser(prog='python -m report.site', description='Build the site of a study that has been run.')
    ap.add_argument('study', nargs='?', default='demo', help='its name (default demo)')
    ap.add_argument('--runs', default='runs', help='folder of all runs (default: runs)')
    ap.add_argument('--out', type=Path, help='where to (default: _site)')
    ap.add_argument('--root', type=Path, default=ROOT, help=argparse.SUPPRESS)
    ap.add_argument('--process', action='store_true', help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.process:                                  # in the private project that `process` made
        from nbdev.serve import proc_nbs
        return void(proc_nbs(path='nbs', n_workers=min(4, os.cpu_count() or 1), force=True))
    root = a.root.resolve()
    out = (a.out or root/'_site').resolve()
    new = build(root, a.study, a.runs, out)
    print(f"{'built' if new else 'up to date'}: {os.path.relpath(out/'index.html')}")


def void(_): return 0


if __name__ == '__main__': main(site)
