"Checks of the tree itself: library, notebooks, README, studies and pins say the same thing. Nothing here changes a file."
import ast, datetime, importlib.metadata, json, re, shutil, subprocess, sys
from pathlib import Path
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from conftest import ROOT
from report.common import code_cells, exported, load_nb, notebooks, settings, source, study_files
from report.environment import ENVIRONMENTS, OF_CUDA, digest_of_settings, extras, lock_file, locked
from report.lock import PLATFORMS
from report.readme import readme
from report.study import load_study

CFG = settings(ROOT)
LIB = CFG['lib_name']
NBS = notebooks(ROOT)
each = pytest.mark.parametrize('stem', NBS)


def test_notebook_names():
    odd = [p.name for p in (ROOT/'nbs').rglob('*.ipynb') if p not in NBS.values()]
    assert not odd, f'not NN_name.ipynb, <wing>/NN_name.ipynb or index.ipynb: {odd}'


def test_library_is_exported():
    want = exported(ROOT)
    have = {p.relative_to(ROOT/LIB).as_posix(): p.read_bytes() for p in (ROOT/LIB).rglob('*.py')}
    diff = [n for n in sorted({**want, **have}) if want.get(n) != have.get(n)]
    assert not diff, f'`make export` would change {diff}'


def test_notebooks_are_clean(tmp_path):
    shutil.copy(ROOT/'settings.ini', tmp_path)
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', ignore=lambda d, names: [n for n in names if not n.endswith('.ipynb') and not (Path(d)/n).is_dir()])
    subprocess.run([sys.executable, '-c', 'from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()'], cwd=tmp_path, check=True)
    dirty = [s for s, p in NBS.items() if (tmp_path/'nbs'/f'{s}.ipynb').read_bytes() != p.read_bytes()]
    assert not dirty, f'`make clean-notebooks` would change {dirty}'


@each
def test_no_outputs(stem):
    assert not [c for c in code_cells(load_nb(NBS[stem]), injected=True) if c['outputs'] or c['execution_count'] or 'injected-parameters' in c['metadata'].get('tags', [])]


@each
def test_no_paths_of_a_machine(stem):
    bad = re.findall(r'[^\s"]*(?:/work/|/root/|/home/|/Users/)[^\s"]*', NBS[stem].read_text())
    assert not bad, bad


@each
def test_imports_stand_alone(stem):
    "The site runs every cell that imports, by itself: one that does anything else would fail or run there"
    for c in code_cells(load_nb(NBS[stem])):
        if re.search(r'^#\| *(export|exports|exporti)\b|^%', source(c), re.M): continue
        body = ast.parse(source(c))
        if not any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(body)): continue
        other = [ast.unparse(n) for n in body.body if not isinstance(n, (ast.Import, ast.ImportFrom))]
        assert not other or re.search(r'^#\| *hide\b', source(c), re.M), f'{other[0]!r} shares a cell with imports'


@pytest.mark.parametrize('mod, banned', [('data', ['torch', 'fastai']), ('comparison', ['torch', 'fastai', f'{LIB}.per_frame', f'{LIB}.cnn_lstm', f'{LIB}.video_transformer', f'{LIB}.training.learner']),
                                         ('inference', ['fastai', f'{LIB}.training.learner'])])
def test_what_a_module_must_not_load(mod, banned):
    if not (ROOT/LIB/f'{mod}.py').exists(): pytest.skip(f'there is no {mod} yet')
    code = f'import {LIB}.{mod}, sys; print(*[m for m in {banned!r} if m in sys.modules])'
    p = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    assert not p.stdout.split(), f'{mod} loads {p.stdout.split()}'


def test_readme():
    assert (ROOT/'README.md').read_text() == readme(ROOT), '`make readme` would change README.md'


@pytest.mark.parametrize('path', study_files(ROOT), ids=lambda p: p.stem)
def test_studies(path):
    study, params, decl, _ = load_study(path, ROOT)
    assert study == path.stem


def test_same_parameter_same_default():
    "A parameter that several notebooks declare has one default: else a study without it would disagree with itself"
    from report.common import declared
    seen = {}
    for s, p in NBS.items():
        for k, v in declared(load_nb(p)).items():
            assert seen.setdefault(k, (v, s))[0] == v, f'{k} is {v!r} in {s} and {seen[k][0]!r} in {seen[k][1]}'


# --- Requirements, and the locks that are made of them

lock = pytest.mark.parametrize('name', ENVIRONMENTS)
# what a marker of a lock is asked with: every Python and machine that the lock is for
MACHINES = [dict(python_version=f'3.{minor}', python_full_version=f'3.{minor}.{patch}', sys_platform=system, platform_machine=machine,
                 platform_system=system.title(), os_name='posix', implementation_name='cpython', platform_python_implementation='CPython')
            for minor in (11, 12, 13) for patch in (0, 4, 5, 20) for system, machine in sorted(PLATFORMS)]


def asked(name=None):
    "Requirements of settings.ini for an extra, those of its own extras among them"
    found = [Requirement(r) for r in (extras(CFG)[name] if name else CFG['requirements'].split())]
    own = [r for r in found if canonicalize_name(r.name) == canonicalize_name(LIB)]
    return [r for r in found if r not in own] + [s for r in own for e in sorted(r.extras) for s in asked(e)]


def locked_versions(name, machine=None):
    "{package: its version for a machine}"
    found = {}
    for package, entries in locked(name, ROOT).items():
        for entry in entries:
            r = Requirement(entry.split('\\')[0])
            if r.marker and not r.marker.evaluate(machine): continue
            assert package not in found, f'locks/{name}.txt has two versions of {package} for {machine}'
            found[canonicalize_name(package)] = str(r.specifier).removeprefix('==')
    return found


@lock
def test_lock_is_up_to_date(name):
    "It was made from settings.ini as it is, holds what that asks for, and every package has hashes"
    text = lock_file(name, ROOT).read_text()
    assert f'# settings: {digest_of_settings(CFG)}' in text, f'settings.ini asks for something else than locks/{name}.txt was made for: make lock'
    for package, entries in locked(name, ROOT).items():
        for e in entries: assert re.search(r'--hash=sha256:[0-9a-f]{64}', e), f'{package} has no hash'
    for m in MACHINES:
        have = locked_versions(name, m)
        for r in asked() + asked(name):
            if r.marker and not r.marker.evaluate(m): continue
            assert canonicalize_name(r.name) in have, f'{r} is not in locks/{name}.txt for {m}'
            assert r.specifier.contains(have[canonicalize_name(r.name)]), f'{r} excludes {have[canonicalize_name(r.name)]}'


@lock
def test_lock_is_complete(name):
    "All that the packages need themselves is locked, too: as the packages say that are installed here"
    have, todo, seen = locked_versions(name), [(canonicalize_name(r.name), frozenset(r.extras)) for r in asked() + asked(name)], set()
    while todo:
        package, more = todo.pop()
        if (package, more) in seen: continue
        seen.add((package, more))
        try: d = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError: continue
        for r in map(Requirement, d.requires or []):
            if r.marker and not any(r.marker.evaluate({'extra': e}) for e in ('', *more)): continue
            assert canonicalize_name(r.name) in have, f'{package} needs {r}, which is not in locks/{name}.txt: make lock'
            if d.version == have.get(package): assert r.specifier.contains(have[canonicalize_name(r.name)], prereleases=True), f'{package} needs {r}'
            todo.append((canonicalize_name(r.name), frozenset(r.extras)))
    assert len({p for p, _ in seen}) > 150 and not (surplus := set(locked_versions(name)) - {p for p, _ in seen}), f'nothing needs {surplus}'


def test_smaller_lock_is_a_part_of_the_larger():
    for a, b in zip(ENVIRONMENTS, ENVIRONMENTS[1:]):
        for m in MACHINES: assert locked_versions(a, m).items() < locked_versions(b, m).items()
        def hashes(name): return {(p, e.split(' ')[0]): re.findall('sha256:\\w+', e) for p, entries in locked(name, ROOT).items() for e in entries}
        assert hashes(a).items() < hashes(b).items()


def test_what_a_torch_for_the_cpu_leaves_out():
    "Nothing but torch needs the packages that TORCH=cpu does not install"
    for package, entries in locked('test', ROOT).items():
        if not OF_CUDA.match(package): continue
        for entry in entries:
            users = re.findall(r'^    # +(?:via )?([\w.-]+)', entry, re.M)
            assert users and all(u == 'via' or u == 'torch' or OF_CUDA.match(u) for u in users), f'{package}: {users}'


def test_same_package_same_requirement():
    "A package that several extras name has one requirement"
    seen = {}
    for r in CFG['requirements'].split() + [r for e in extras(CFG).values() for r in e]:
        name = canonicalize_name(Requirement(r).name)
        assert seen.setdefault(name, r) == r or name == canonicalize_name(LIB), f'{r} and {seen[name]}'


def test_makefile_lists_its_targets():
    text = subprocess.run(['make', '-s'], cwd=ROOT, capture_output=True, text=True).stdout
    for t in ('report', 'test', 'site', 'export', 'clean'): assert re.search(rf'^  {t} +\S', text, re.M), t


def test_bad_study_name_deletes_nothing():
    p = subprocess.run(['make', '-s', '-n', 'clean', 'STUDY=demo'], cwd=ROOT, capture_output=True, text=True)
    assert '-m report.clean "$STUDY"' in p.stdout
    for name in ('../x', 'x"; touch hacked; "', '$(shell touch hacked)', '`touch hacked`', "x' ; touch hacked", 'a b', ''):
        p = subprocess.run(['make', '-s', 'clean', 'STUDY=' + name], cwd=ROOT, capture_output=True, text=True)
        assert p.returncode and not (ROOT/'hacked').exists(), name


# --- What is written for people

def tool(name):
    "A program of the environment, whatever PATH says"
    path = Path(sys.executable).with_name(name)
    if not path.exists(): pytest.skip(f'{name} is not installed')
    return path


def markdown(stem): return [source(c) for c in load_nb(NBS[stem])['cells'] if c['cell_type'] == 'markdown']


def test_ruff():
    p = subprocess.run([tool('ruff'), 'check', '--no-cache', '--output-format', 'concise'], cwd=ROOT, capture_output=True, text=True)
    assert not p.returncode, p.stdout + p.stderr


def test_spelling():
    files = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True).stdout.splitlines() if (ROOT/'.git').exists() else []
    files = [f for f in files if Path(f).suffix in ('.ipynb', '.md', '.py', '.yaml', '.yml', '.toml', '.ini', '.cff') and (ROOT/f).exists()] or ['nbs', 'report', 'README.md']
    p = subprocess.run([tool('codespell'), *files], cwd=ROOT, capture_output=True, text=True)
    assert not p.returncode, p.stdout + p.stderr


@each
def test_title_and_motivation(stem):
    "A title cell alone, with a summary in one quoted paragraph; then why, before anything else"
    cells = load_nb(NBS[stem])['cells']
    assert re.fullmatch(r'# [^\n]+\n\n> [^\n]+(\n> [^\n]+)*(\n\n(- [\w-]+: .+\n?)+)?', source(cells[0]).strip()), source(cells[0])
    assert cells[1]['cell_type'] == 'markdown' and not source(cells[1]).startswith('#'), source(cells[1])[:80]


@pytest.mark.parametrize('stem', [s for s in NBS if re.match(r'\d\d_', s)])
def test_numbered_notebooks(stem):
    "Opens with its question; ends with what was learned, in numbers that a cell computes; figures are referred to"
    cells = load_nb(NBS[stem])['cells']
    assert '?' in source(cells[1]).split('\n\n')[0], 'the first paragraph asks no question'
    last = max(i for i, c in enumerate(cells) if c['cell_type'] == 'markdown' and source(c).strip() == '## What we learned')
    said = source(cells[last + 1])
    assert re.match(r'#\| study\n#\| echo: false', said) and re.search(r'Markdown\(|say\(', said), 'nothing is computed under What we learned'
    assert not any(source(c).startswith('## ') for c in cells[last + 1:] if c['cell_type'] == 'markdown')
    text = ''.join(re.findall(r'@(?:fig|eq)-[\w-]+', '\n'.join(markdown(stem))))
    labels = re.findall(r'^#\| *label: *(fig-[\w-]+)', '\n'.join(map(source, cells)), re.M) + re.findall(r'\{#(eq-[\w-]+)', '\n'.join(markdown(stem)))
    assert not [l for l in labels if f'@{l}' not in text], 'figures and formulas that no sentence refers to'


@each
def test_references_resolve(stem):
    text = '\n'.join(source(c) for c in load_nb(NBS[stem])['cells'])
    labels = set(re.findall(r'^#\| *label: *((?:fig|tbl)-[\w-]+)', text, re.M) + re.findall(r'\{#((?:eq|fig|tbl|sec)-[\w-]+)', text))
    assert not set(re.findall(r'(?<![\w`])@((?:fig|tbl|eq|sec)-[\w-]*\w)', '\n'.join(markdown(stem)))) - labels


PROSE = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', *(str(p.relative_to(ROOT)) for p in sorted((ROOT/'nbs').glob('*/*.md'))),
         *(str(p.relative_to(ROOT)) for p in NBS.values())]


def text_of(path):
    "Markdown of a page or a notebook, without code"
    s = '\n\n'.join(source(c) for c in load_nb(path)['cells'] if c['cell_type'] == 'markdown') if path.suffix == '.ipynb' else path.read_text()
    return re.sub(r'^```.*?^```|`[^`\n]*`', '', s, flags=re.M | re.S)


def anchors(path):
    "Anchors that GitHub, Quarto and the site make of headings"
    if path.suffix not in ('.md', '.ipynb'): return set()
    heads = re.findall(r'^#+ +(.+?)(?: *\{#([\w-]+)\})? *$', text_of(path), re.M)
    return {b or re.sub(r'[^\w -]', '', a.lower()).replace(' ', '-') for a, b in heads}


@pytest.mark.parametrize('path', PROSE)
def test_links(path):
    "Links and pictures lead to files of the project, and anchors to headings; none leaves it for a file that is not committed"
    path, bad = ROOT/path, []
    for url in re.findall(r'\]\(([^)\s]+)(?: "[^"]*")?\)', text_of(path)):
        if re.match(r'https?://[\w.-]+\.[a-z]+(/\S*)?$', url): continue
        file, _, anchor = url.partition('#')
        to = (path.parent/file).resolve() if file else path
        if not to.exists() or not to.is_relative_to(ROOT): bad.append(url)
        elif anchor and anchor not in anchors(to): bad.append(f'{url}: no such heading')
    assert not bad, f'{path.name}: {bad}'


def test_readme_on_github():
    "Under 200 lines, no HTML that GitHub strips, pictures that are committed, commands that exist"
    s = (ROOT/'README.md').read_text()
    assert len(s.splitlines()) < 200
    plain = re.sub(r'^```.*?^```|`[^`\n]*`', '', s, flags=re.M | re.S)
    assert not re.search(r'<(?!!--)/?[a-z]', plain) and ':::' not in plain and '{#' not in plain
    assert 'pages/' not in re.sub(r'nbs/pages/', '', plain)
    known = subprocess.run([sys.executable, '-m', f'{LIB}.study.cli', '--help'], cwd=ROOT, capture_output=True, text=True, env={'COLUMNS': '120'}).stdout
    for command in re.findall(r'kinetics-dance ([a-z][\w-]+)', s):
        if not command.startswith('dance'): assert re.search(rf'\b{command}\b', known), command
    targets = re.findall(r'^([a-z-]+):', (ROOT/'Makefile').read_text(), re.M)
    assert not set(re.findall(r'^make ([a-z-]+)', s, re.M)) - set(targets)


def test_answer_of_the_readme():
    "The figure was drawn of the numbers that stand beside it"
    from report.answer import drawn, stamp
    a = json.loads((ROOT/'nbs/images/answer.json').read_text())
    assert drawn(ROOT/'nbs/images/answer.png') == stamp(a), '`make readme` would draw the figure anew'
    for m in a['models'].values(): assert 0 <= m['accuracy']['low'] <= m['accuracy']['mean'] <= m['accuracy']['high'] <= 1
    assert sum((ROOT/'nbs/images'/f).stat().st_size for f in ('answer.png', 'over_time.png')) < 300_000


def test_pages():
    "A title, a summary, and headings one level down, as notebooks have them; nothing that only one renderer knows"
    for p in sorted((ROOT/'nbs/pages').glob('*.md')):
        s = re.sub(r'^```.*?^```', '', p.read_text(), flags=re.M | re.S)
        assert re.match(r'# [^\n]+\n\n> \S', s), f'{p.name}: title and summary'
        assert len(re.findall(r'^# ', s, re.M)) == 1, f'{p.name}: one title'
        odd = re.findall(r'\{\{<.*|^:::\{.*|^\{[a-z]+\}.*|^::: *\{(?!\.callout-(?:note|tip|warning|important|caution)).*|\{(?:ref|doc|numref)\}`.*', s, re.M)
        assert not odd, f'{p.name}: {odd[0]}'


def test_own_videos_is_the_example():
    "The code of the page is that of the notebook, which a test runs"
    page = re.search(r'```python\n(.*?)```', (ROOT/'nbs/pages/own_videos.md').read_text(), re.S)[1]
    example = '\n'.join(source(c) for c in code_cells(load_nb(ROOT/'examples/own_videos.ipynb'))).splitlines()
    assert [l for l in page.splitlines() if l] == [l for l in example if l and 'show_batch' not in l]
    assert len(page.splitlines()) < 30


# --- Version, citation, workflows

def test_version():
    "One version everywhere, with its entry and date in the changelog, the newest first"
    version, log = CFG['version'], (ROOT/'CHANGELOG.md').read_text()
    heads = re.findall(r'^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$', log, re.M)
    assert heads and heads[0][0] == version, f'CHANGELOG.md has no entry for {version}'
    assert len(re.findall(r'^## ', log, re.M)) == len(heads) + 1 and log.index('## [Unreleased]') < log.index(f'[{version}]')
    numbers = [tuple(map(int, v.split('.'))) for v, _ in heads]
    assert numbers == sorted(set(numbers), reverse=True) and [d for _, d in heads] == sorted((d for _, d in heads), reverse=True)
    assert set(re.findall(r'^### (.+)$', log, re.M)) <= {'Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security'}
    assert re.search(r"__version__ = ['\"](.+)['\"]", (ROOT/LIB/'__init__.py').read_text())[1] == version


def test_citation():
    "What the schema 1.2.0 of the Citation File Format asks for, and the version and date of the changelog"
    c = yaml.safe_load((ROOT/'CITATION.cff').read_text())
    assert c['cff-version'] == '1.2.0' and c['message'] and c['title'] and c['type'] in ('software', 'dataset')
    assert str(c['version']) == CFG['version'] and f"[{c['version']}] - {c['date-released']}" in (ROOT/'CHANGELOG.md').read_text()
    assert isinstance(c['date-released'], datetime.date) and c['license'] == 'Apache-2.0'
    known = set('abstract authors cff-version commit contact date-released doi identifiers keywords license license-url message preferred-citation references '
                'repository repository-artifact repository-code title type url version'.split())
    assert not set(c) - known
    for who in [c['authors'], *(r['authors'] for r in c['references'])]:
        assert who and all('name' in a or 'family-names' in a for a in who)
    assert all({'type', 'title', 'authors'} <= set(r) for r in c['references'])
    assert f"version = {{{c['version']}}}" in re.sub(' +', ' ', (ROOT/'nbs/pages/citation.md').read_text())


# those of platforms and of publishing are tested in test_release.py
@pytest.mark.parametrize('path', [ROOT/'.github/workflows'/f for f in ('site.yml', 'test.yml')], ids=lambda p: p.stem)
def test_workflow(path):
    "Valid, with official actions at a version, no more rights than needed, and nothing to run but a target of the Makefile"
    w = yaml.safe_load(path.read_text())
    assert set(w) <= {'name', True, 'concurrency', 'permissions', 'jobs'} and w['permissions'] == {'contents': 'read'}   # YAML reads `on` as true
    for name, job in w['jobs'].items():
        assert job['runs-on'] == 'ubuntu-latest' and job['steps'] and set(job.get('permissions', {})) <= {'pages', 'id-token'}
        assert job.get('needs', name) in w['jobs']
        for s in job['steps']:
            assert ('uses' in s) != ('run' in s)
            if 'uses' in s: assert re.fullmatch(r'actions/[a-z-]+@v\d+', s['uses']), s['uses']
            else: assert s['run'] in ('make test', 'make report'), s['run']
    runs = [s.get('run') or s['uses'].split('@')[0] for j in w['jobs'].values() for s in j['steps']]
    if path.stem == 'site': assert [r for r in runs if r.startswith('make') or 'pages' in r][1:] == ['make report', 'actions/upload-pages-artifact', 'actions/deploy-pages']


def test_quarto():
    "Settings with which `nbdev_docs` renders the same notebooks: what nbdev would write, keys that Quarto knows, files that are there"
    from nbdev.quarto import _nbdev_yml
    fill = {k: CFG.get(k).replace('%(user)s', CFG['user']).replace('%(repo)s', CFG['repo']) for k in ('title', 'description', 'branch', 'git_url', 'doc_host', 'doc_baseurl')}
    made = yaml.safe_load(_nbdev_yml.format(**fill, doc_path=CFG['doc_path']))
    assert yaml.safe_load((ROOT/'nbs/nbdev.yml').read_text()) == made
    q = yaml.safe_load((ROOT/'nbs/_quarto.yml').read_text())
    assert set(q) <= {'project', 'format', 'website', 'metadata-files', 'execute', 'lang'} and q['project']['type'] == 'website'
    assert set(q['project']) <= {'type', 'output-dir', 'resources', 'render'} and set(q['format']) == {'html', 'commonmark'}
    assert set(q['format']['html']) <= {'theme', 'toc', 'css', 'code-copy', 'keep-md', 'number-sections'}
    assert set(q['website']) <= {'title', 'description', 'site-url', 'repo-url', 'repo-branch', 'repo-actions', 'twitter-card', 'open-graph', 'navbar', 'sidebar', 'search'}
    assert q['metadata-files'] == ['nbdev.yml', 'sidebar.yml']      # the second is written by nbdev each time
    assert all((ROOT/'nbs'/r).exists() for r in q['project'].get('resources', []))
    css = q['format']['html'].get('css', [])
    assert all((ROOT/'nbs'/c).exists() for c in ([css] if isinstance(css, str) else css))


@each
def test_constructs_that_both_renderers_know(stem):
    "Callouts with a kind that Quarto and the site have; no tabsets, no layouts, no shortcodes"
    text = '\n'.join(markdown(stem))
    for kind in re.findall(r'^:::+ *(\{[^}]*\}|\w.*)', text, re.M): assert re.fullmatch(r'\{\.callout-(note|tip|warning|important|caution)( [^}]*)?\}', kind), kind
    assert '{{<' not in text and 'panel-tabset' not in text and 'layout-ncol' not in text
