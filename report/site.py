"""The site of a study: executed notebooks → nbdev's processors → the bridge → Sphinx → _site/.

    python -m report.site demo        # or: make site STUDY=demo"""
import argparse, ast, hashlib, inspect, json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path
import yaml
from kinetics_dance.core.platform import link_path
from . import gallery, pages, results, try_it
from .bridge import Api, Media, check_links, definitions, page, prose, to_myst
from .common import (IN_WING, NUMBERED, ROOT, UserError, code_cells, default_exp, load_nb, main, module_file, notebooks, read_json,
                     settings, source, wings, write_atomic, write_json)
from .polish import polish, protect, refuse
from .untrusted import raw
from .wings import Wings

HERE = Path(__file__).parent
MARKER = '.kinetics_dance'                         # names the files of a site: what else is there is somebody's own
OF_A_SITE = re.compile(r'(?:[^/]+/)*(?:[^/]+\.(?:html|css|js|map|json|svg|png|jpe?g|webp|gif|ico|mp4|webm|wav|mp3|txt|md|csv|xml|ipynb|inv|woff2?|ttf|eot|pdf)'
                       r'|\.(?:stamp|buildinfo[\w.]*|nojekyll))')


def sha(*parts): return hashlib.sha256(b'\0'.join(p if isinstance(p, bytes) else str(p).encode() for p in parts)).hexdigest()[:16]


def not_again(src):
    "nbdev runs every cell that imports something: keep it from running one that also does something else"
    if re.search(r'^#\| *(exports?|exporti)\b', src, re.M): return src
    try: body = ast.parse(src).body
    except SyntaxError: return src
    mixed = any(isinstance(n, (ast.Import, ast.ImportFrom)) for b in body for n in ast.walk(b)) and not all(isinstance(b, (ast.Import, ast.ImportFrom)) for b in body)
    return '#| eval: false\n' + src if mixed else src


def process(root, stems, executed, lib, cache, shared=None):
    """{stem: path} of the notebooks as nbdev's `proc_nbs` leaves them. It imports what a page documents, which takes
    seconds, so what did not change is taken from `cache`; pages of the wings from `shared`, which all studies have."""
    def place(s): return shared if shared and IN_WING.match(s) else cache
    library = b''.join(p.read_bytes() for p in sorted((root/lib).rglob('*.py'))) + inspect.getsource(Api).encode() + (root/'settings.ini').read_bytes()
    res = {s: place(s)/f'{s}-{sha(library, executed[s].read_bytes())}.ipynb' for s in stems}
    todo = [s for s, p in res.items() if not p.exists()]
    if not todo: return res
    # a project of its own: `proc_nbs` writes _proc/ beside the settings.ini of the working directory
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        (tmp/'settings.ini').write_text((root/'settings.ini').read_text() + '\nrenderer = report.bridge.Api\n')
        (tmp/'nbs').mkdir()
        link_path(root/lib, tmp/lib, relative=False)
        for s in todo:
            nb = load_nb(executed[s])
            for c in code_cells(nb, injected=True): c['source'] = not_again(source(c))
            write_json(tmp/'nbs'/f'{s}.ipynb', nb)
        path = os.pathsep.join([str(root), str(HERE.parent), os.environ.get('PYTHONPATH', '')])
        p = subprocess.run([sys.executable, '-m', 'report.site', '--process'], cwd=tmp, capture_output=True, text=True,
                           env={**os.environ, 'PYTHONPATH': path, 'MPLBACKEND': 'agg', 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'})
        if p.returncode:
            why = re.search(r'^Exception: (Error in notebook.*?)(?=\n"""|\nThe above|\Z)', p.stderr, re.M | re.S)
            raise UserError('nbdev could not process the notebooks :\n' + (why[1] if why else p.stdout + p.stderr).strip())
        for s in todo:
            for old in place(s).glob(f'{s}-*.ipynb'): old.unlink(missing_ok=True)
            write_atomic(res[s], (tmp/'_proc'/f'{s}.ipynb').read_bytes())
    return res


def heads(nbs):
    "{stem: (title, summary)} of the pages of notebooks"
    res = {}
    for s, nb in nbs.items():
        text = next((source(c) for c in nb['cells'] if c['cell_type'] == 'markdown' and source(c).startswith('# ')), f'# {s}')
        title, _, rest = text[2:].partition('\n')
        m = re.search(r':::\{div\} lead\n(.*?)\n:::', rest, re.S)
        res[s] = title.strip(), ' '.join(m[1].split()) if m else ''
    return res


def not_run(nb):
    "A notebook that no study has run, as it is: its labels have something to stand for"
    for c in code_cells(nb):
        if re.search(r'^#\| *label:', source(c), re.M) and not c['outputs']:
            c['outputs'] = [dict(output_type='display_data', metadata={}, data={'text/markdown': '*(not run in this study)*'})]
    return nb


TO_COME = 'This page shows how a part of the library is built, by running it. It is being executed; `make report` puts it here when it is done.'


def to_come(nb):
    "A page for a notebook that has not been executed yet: its title, a word about that, and its headings, so that links find their place"
    text = [source(c) for c in nb['cells'] if c['cell_type'] == 'markdown']
    title, _, rest = (text[0] if text else '# ').removeprefix('# ').partition('\n')
    lead = ' '.join(l.removeprefix('>').strip() for l in rest.split('\n') if l.startswith('>'))
    head = '---\n' + yaml.safe_dump(dict(title=title.strip(), description=lead), allow_unicode=True, width=10**6) + '---'
    headings = [h for t in text[1:] for h in re.findall(r'^#+ .+', re.sub(r'^```.*?^```', '', t, flags=re.M | re.S), re.M)]
    cells = [dict(cell_type='raw', metadata={}, source=head)]
    cells += [dict(cell_type='markdown', metadata={}, source=t) for t in [TO_COME, *headings]]
    return {**nb, 'cells': cells}


def write_extra(src, root, lib, runs, study, nbs, stems, modules, media, tries=True):
    "The pages that are no notebooks; the navigation goes into the home page"
    taken = {page(s) for s in stems} | set(wings(root))
    def downloads(data, label, name):
        to = src/'_static/results'/label/Path(name).name
        write_atomic(to, data)
        return f'_static/results/{label}/{Path(name).name}'
    found, made = results.studies(root, runs, study), {}
    for s, folder in found.items():
        made[results.page_name(s)] = results.page(root, s, folder, media, downloads)
    prosaic = pages.prose_pages(root, taken)
    names = {p.stem: name for name, (p, _) in prosaic.items()}
    made |= {name: text for name, (_, text) in prosaic.items()}
    if 'licence' not in made and (text := pages.licence_page(root)): made['licence'] = text; names['licence'] = 'licence'
    if 'changelog' not in made and (f := root/'CHANGELOG.md').exists(): made['changelog'] = prose(f.read_text(encoding='utf-8')); names |= dict(changelog='changelog', CHANGELOG='changelog')
    known = {m for nb in nbs.values() for c in nb['cells'] if c['cell_type'] == 'markdown' for m in re.findall(r'^\((api-[\w.-]+)\)=', source(c), re.M)}
    if modules: made['api'] = pages.api_page(root, lib, modules, known)
    if rec := read_json(root/runs/study/'record.json'): made['record'] = pages.record_page(rec)
    goals = names | {f'results/{s}/README.md': results.page_name(s) for s in found}
    goals |= {f'{w}/index.md': w for w in wings(root)}
    built = pages.wing_pages(root, stems, heads(nbs))
    for nb in nbs.values():
        for c in nb['cells']:
            if c['cell_type'] == 'markdown': c['source'] = pages.links(source(c), goals, root)
    for name, text in {**made, **built}.items():
        if name in taken and name not in built: raise UserError(f'two pages of the site are called {name}')
        write_atomic(src/f'{name}.md', pages.links(text, goals, root))
    prosaic = [n for n in pages.GUIDES if n in names] + sorted(n for n in names if n not in pages.GUIDES + pages.REFERENCE + ['licence', 'CHANGELOG'])
    own = [try_it.make(root, study, root/runs/study, src)] if tries else []
    trees = [('The study', [page(s) for s in stems if NUMBERED.match(s)]), ('Results', [n for n in own if n] + [n for n in made if n.startswith('results-')]), ('Guides', [names[n] for n in prosaic]),
             ('How it is built', list(built)), ('Reference', [n for n in ('api', *(names.get(k) for k in pages.REFERENCE), 'record', 'licence') if n in made])]
    nbs['index']['cells'] += [dict(cell_type='markdown', metadata={}, id=f'toc-{i}', source=pages.toctree(c, p)) for i, (c, p) in enumerate(trees) if p]
    hero(nbs['index'], root, found, media)
    if any(own): try_it.invite(nbs['index'])


def hero(home, root, found, media):
    "Two films that single frames cannot tell apart, on the home page, before it says what is rendered"
    for s, folder in found.items():
        g = gallery.find(root, s, folder)
        if not g or not any(c['differs'] == 'order' for c in g[0]['clips']): continue
        i = next((i for i, c in enumerate(home['cells']) if c['cell_type'] == 'markdown' and re.match(r'## What is real', source(c))), None)
        if i is None: return
        text = f"Two clips of the study. Every frame of the one is a frame of the other; only their order differs. [All classes]({results.page_name(s)}.md)."
        first = [c for c in g[0]['clips'] if c['differs'] == 'order'][:2]
        home['cells'].insert(i, dict(cell_type='markdown', metadata={}, id='hero', source=text + '\n\n' + raw(gallery.show(dict(clips=first), g[1], media))))
        return


def redirects(html):
    "Pages that have other addresses than before lead on from the old ones (report/moved.json: old name, new name)"
    for old, new in (read_json(HERE/'moved.json') or {}).items():
        if (html/f'{old}.html').exists() or not (html/f'{new}.html').exists(): continue
        write_atomic(html/f'{old}.html', f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Moved</title>\n<meta name="robots" content="noindex">\n'
                     f'<meta http-equiv="refresh" content="0; url={new}.html">\n<link rel="canonical" href="{new}.html">\n</head>\n'
                     f'<body><main><h1>This page has moved</h1>\n<p>It is now <a href="{new}.html">here</a>.</p></main></body>\n</html>\n')


def stamp_of(root, study, runs, executed):
    "Changes when anything does that the site is made of"
    rec = read_json(root/runs/study/'record.json') or {}
    same = {k: v for k, v in rec.items() if k not in ('seconds', 'finished')}
    files = [*executed.values(), *sorted((root/settings(root)['lib_name']).rglob('*.py')), root/'settings.ini', root/'LICENSE', root/'CHANGELOG.md',
             *sorted((root/'nbs').glob('*/*.md')), *sorted((root/'nbs/images').glob('*')), *sorted(HERE.glob('*'))]
    return sha(json.dumps(same, sort_keys=True), str(root), try_it.ready(root/runs/study), *results.stamp(root, runs, study), *[p.read_bytes() for p in files if p.is_file()])


def stamp_of_answer(root, study, executed):
    "Changes when the home page or a page of a stage does"
    return sha('answer', str(root), study, *[p.read_bytes() for s, p in executed.items() if not IN_WING.match(s)])


def is_stamped(out, name, stamp):
    try: return (out/name).read_text() == stamp
    except OSError: return False


def up_to_date(root, study, runs='runs', out=None):
    "Is the site there, and of this study as it is now?"
    executed = {s: root/runs/study/'executed'/f'{s}.ipynb' for s in notebooks(root)}
    stamp = (out or root/'_site')/'.stamp'
    return stamp.exists() and all(p.exists() for p in executed.values()) and stamp.read_text() == stamp_of(root, study, runs, executed)


def of_old_site(out, name):
    "Is it a file of a site that has no list of its files? What lies at the top is a page that Sphinx made, or one of a few"
    if (out/name).is_symlink() or not OF_A_SITE.fullmatch(name): return False
    if '/' in name: return name.startswith('_')
    if name.endswith('.html'): return '_static/' in (out/name).read_text(encoding='utf-8', errors='replace')
    return name.startswith('.') or name in ('objects.inv', 'searchindex.js')


def check_site(out):
    "Refuse a folder that is neither empty nor an earlier site, or in which somebody put files of their own: it is replaced as a whole"
    if not out.exists(): return
    there = {str(p.relative_to(out)) for p in out.rglob('*') if p.is_symlink() or not p.is_dir()} if out.is_dir() else {out.name}
    if (out/MARKER).is_file(): there -= {MARKER, *(out/MARKER).read_text().split('\n')}
    elif (out/'.stamp').is_file() and re.fullmatch(r'[0-9a-f]{16,}', (out/'.stamp').read_text()): # a site of version 0.1.0
        there = {f for f in there if not of_old_site(out, f)}
    if there: raise UserError(f'{out}: holds {min(there)!r}, which is not of a site made here; name a folder that is new or empty')


def build(root, study, runs='runs', out=None, as_they_are=False, answer=False):
    """Build `_site/` of a study; True if there was anything to do. `as_they_are`: notebooks of the wings that were not run are shown
    without what they print. `answer`: the home page and the stages only; pages of the wings say that they are to come."""
    folder, out, lib = root/runs/study, out or root/'_site', settings(root)['lib_name']
    stems, executed = list(notebooks(root)), root/runs/study/'executed'
    executed = {s: executed/f'{s}.ipynb' for s in stems}
    for s in [s for s in stems if as_they_are and IN_WING.match(s) and not executed[s].exists()]:
        executed[s] = folder/'.site/as_they_are'/f'{s}.ipynb'
        write_json(executed[s], not_run(load_nb(notebooks(root)[s])))
    later = {s for s in stems if answer and IN_WING.match(s)}
    if missing := [s for s in stems if not executed[s].exists() and s not in later]:
        raise UserError(f"study {study!r}: not run yet: {', '.join(missing)}; `make report STUDY={study}` runs them")
    if 'index' not in stems: raise UserError('nbs/index.ipynb is missing: the site needs a home page')
    of_answer = stamp_of_answer(root, study, executed)
    if answer and is_stamped(out, '.answer', of_answer): return False
    stamp = sha(of_answer, 'and nothing else') if answer else stamp_of(root, study, runs, executed)
    if is_stamped(out, '.stamp', stamp): return False
    check_site(out)
    kept = Wings(root/runs)
    proc = process(root, [s for s in stems if s not in later], executed, lib, folder/'.site', kept.pages if kept.ours() else None)
    with tempfile.TemporaryDirectory(prefix='.site-', dir=out.parent) as tmp:
        src, html = Path(tmp)/'src', Path(tmp)/'html'
        media = Media(src/'_static/media')
        cfg = settings(root)
        base = f"{cfg.get('doc_host')}{cfg.get('doc_baseurl')}".replace('%(user)s', cfg.get('user', '')) if cfg.get('doc_host') else ''
        nbs, modules = {}, {}
        for s in stems:
            authored = load_nb(notebooks(root)[s])
            nb = to_come(authored) if s in later else load_nb(proc[s])
            nb['metadata']['module'] = mod = default_exp(authored)
            if mod: modules[mod] = s
            order = definitions(module_file(root, lib, mod).read_text(encoding='utf-8')) if mod else ()
            nbs[s] = to_myst(nb, s, lib, media, base, order, stems)
        check_links(nbs.values())
        write_extra(src, root, lib, runs, study, nbs, stems, modules, media, tries=not answer)
        for s, nb in nbs.items(): write_json(src/f'{page(s)}.ipynb', nb)
        if (root/'nbs/images').is_dir(): shutil.copytree(root/'nbs/images', src/'images')
        shutil.copy(HERE/'conf.py', src); [shutil.copy(HERE/f, src/'_static') for f in ('study.css', 'study.js', 'icon.svg')]
        p = subprocess.run([sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-j', str(min(4, os.cpu_count() or 1)), '-b', 'html', '-d', str(Path(tmp)/'trees'), str(src), str(html)],
                           env={**os.environ, 'PYTHONPATH': str(HERE.parent), 'SITE_TITLE': cfg.get('title', lib), 'SITE_LIB': str(root/lib)}, capture_output=True, text=True)
        if p.returncode:
            raise UserError('the site was not built: Sphinx warns of\n' + re.sub(re.escape(str(src)) + '/?', '', p.stderr or p.stdout).strip())
        redirects(html)
        polish(html)
        protect(html)
        refuse(html, root)
        (html/'.stamp').write_text(stamp)
        (html/'.answer').write_text(of_answer)
        files = sorted(str(p.relative_to(html)) for p in html.rglob('*') if p.is_file())
        (html/MARKER).write_text('\n'.join(files))
        check_site(out)
        replace(out, html, Path(tmp)/'old')
    return True


def replace(out, new, old):
    "Put a finished site in the place of an older one, which is there again if anything comes between"
    try:
        if out.exists(): os.rename(out, old)
        os.rename(new, out)
    finally:
        if not out.exists() and old.exists(): os.rename(old, out)


def site():
    ap = argparse.ArgumentParser(prog='python -m report.site', description='Build the site of a study that has been run.')
    ap.add_argument('study', nargs='?', default='demo', help='its name (default demo)')
    ap.add_argument('--runs', default='runs', help='folder of all runs (default: runs)')
    ap.add_argument('--out', type=Path, help='where to (default: _site)')
    ap.add_argument('--as-they-are', action='store_true', help='show notebooks of the wings that the study did not run, without what they print')
    ap.add_argument('--root', type=Path, default=ROOT, help=argparse.SUPPRESS)
    ap.add_argument('--process', action='store_true', help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.process:                                  # in the private project that `process` made
        from nbdev.serve import proc_nbs
        return void(proc_nbs(path='nbs', n_workers=min(4, os.cpu_count() or 1), force=True))
    root = a.root.resolve()
    out = (a.out or root/'_site').resolve()
    new = build(root, a.study, a.runs, out, a.as_they_are)
    print(f"{'built' if new else 'up to date'}: {os.path.relpath(out/'index.html')}")


def void(_): return 0


if __name__ == '__main__': main(site)
